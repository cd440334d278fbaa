/* Preloaded into linux.uml where the host's processors have more registers than it knows of.
 *
 * User-mode Linux 6.1 and 6.12 save and restore 2,696 bytes of extended registers (NT_X86_XSTATE).
 * A processor with AMX has 11,008, and the host's kernel refuses to set a part of them
 * (arch/x86/kernel/fpu/regset.c: xstateregs_set, EFAULT): the first process of the lab dies.
 * Here, a part that is to be set is laid over the beginning of the whole set, which is then set.
 * The rest keeps its values: nothing in the lab uses those registers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static long (*libc_ptrace)(int request, pid_t pid, void *address, void *data);

/* Not on the stack: a stack of User-mode Linux's kernel has 16 KiB. linux.uml calls ptrace from one
 * thread only. */
static char registers[64 * 1024];

__attribute__((constructor)) static void find_libc_ptrace(void)
{
    *(void **)&libc_ptrace = dlsym(RTLD_NEXT, "ptrace");
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);

    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        const struct iovec *part = data;
        struct iovec whole = {registers, sizeof registers};
        if (libc_ptrace(PTRACE_GETREGSET, pid, address, &whole) == 0 &&
            part->iov_len < whole.iov_len) {
            memcpy(registers, part->iov_base, part->iov_len);
            return libc_ptrace(PTRACE_SETREGSET, pid, address, &whole);
        }
    }
    return libc_ptrace(request, pid, address, data);
}

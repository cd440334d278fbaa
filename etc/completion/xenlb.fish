# Completion of xenlb for fish: verbs, options, and the guest names of the running agent.
function __xenlb_complete
    for line in (env _XENLB_COMPLETE=fish_complete COMP_WORDS=(commandline -cp) \
            COMP_CWORD=(commandline -t) xenlb 2>/dev/null)
        set -l answer (string split -m 1 , -- $line)
        switch $answer[1]
            case dir
                __fish_complete_directories $answer[2]
            case file
                __fish_complete_path $answer[2]
            case plain
                echo $answer[2]
        end
    end
end
complete --no-files --command xenlb --arguments "(__xenlb_complete)"

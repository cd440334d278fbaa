"""What services require of the director: addresses, sysctls, and flushed connection tracking."""

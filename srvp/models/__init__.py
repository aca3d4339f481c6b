"""Models: a file each, beside its paper; `interface` says what each one offers."""

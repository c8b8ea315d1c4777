# shellcheck shell=bash
#
# What run.sh, test.sh and the tools share. Sourced, with $root (the checkout)
# and $program (for messages) set.

# shellcheck disable=SC2154 # set by whoever sources this file
say() {
    printf '%s: %s\n' "$program" "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

# Runs a command and shows what it printed only if it fails.
quietly() {
    local output status=0

    output=$("$@" 2>&1 </dev/null) || status=$?
    if [ "$status" -ne 0 ]; then
        printf '%s\n' "$output" >&2
        say "failed with status $status: $*"
    fi
    return "$status"
}

# build_folder NAME: where to build. In the checkout, unless it (or the
# folder of an earlier build) belongs to somebody else.
build_folder() {
    # shellcheck disable=SC2154
    local folder=$root/$1

    if [ -e "$folder" ] && [ ! -w "$folder" ] || [ ! -e "$folder" ] && [ ! -w "$root" ]; then
        folder=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/$1
        mkdir -p -- "$folder"
    fi
    printf '%s\n' "$folder"
}

# build FOLDER OPTION...: configures it if needed and builds. A folder we made
# with other options, or for a checkout that stood elsewhere, is made anew;
# one that somebody configured by hand is used as it is.
build() {
    local folder=$1 stamp
    shift

    stamp=$(printf '%s\n' "$root" "$CC" "$@")
    if [ -e "$folder/.made-from" ] && [ "$(cat -- "$folder/.made-from")" != "$stamp" ]; then
        rm -rf -- "$folder"
    fi
    if [ ! -e "$folder/build.ninja" ]; then
        quietly meson setup "$@" -- "$folder" "$root" || return 1
        printf '%s\n' "$stamp" >"$folder/.made-from"
    fi
    quietly ninja -C "$folder"
}

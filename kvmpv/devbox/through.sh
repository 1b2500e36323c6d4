#!/bin/sh
# Run a command in the box with files and folders of the host in place, read and written through:
#   through.sh CWD [f|d SOURCE TARGET]... -- CMD...
# The host's root is mounted in a namespace that is kept for that (init.sh); the command gets a copy of it with no
# more than the named ones left. Nothing else in the box sees any of it. Programs are busybox's: quick to start.
set -eu
box=/run/kvmpv-box
bb=$box/busybox

if [ "$1" = inner ]; then
    cwd=$2
    shift 2
    while [ "$1" != -- ]; do
        $bb mount -o bind "$box/host$2" "$3" || exit 125
        shift 3
    done
    shift
    $bb umount "$box/host"
    cd "$cwd"
    exec "$@"
fi
[ -x "$bb" ] || {
    echo "devbox: this box is of an older kind: end it (scripts/devbox down)" >&2
    exit 125
}

# What a mount needs to lie on is made, and taken away when it is empty again.
made=
place() { # KIND PATH
    [ ! -e "$2" ] || return 0
    top=$2
    while [ -n "${top%/*}" ] && [ ! -e "${top%/*}" ]; do top=${top%/*}; done
    made="$made$top
"
    if [ "$1" = d ]; then $bb mkdir -p "$2"; else $bb mkdir -p "${2%/*}" && : >"$2"; fi
}

cwd=$1
shift
place d "$cwd"
at=kind
for word; do # up to the command
    [ "$at $word" != "kind --" ] || break
    case $at in
    kind) kind=$word at=source ;;
    source) at=target ;;
    target) place "$kind" "$word" && at=kind ;;
    esac
done
set -- $bb nsenter "--mount=$box/host.ns" $bb unshare -m $bb sh "$0" inner "$cwd" "$@"
[ -n "$made" ] || exec "$@"
trap : HUP INT QUIT TERM
status=0
"$@" || status=$?
printf %s "$made" | while IFS= read -r top; do
    [ ! -e "$top" ] || $bb find "$top" -depth -empty -exec $bb rm -r {} \;
done
exit "$status"

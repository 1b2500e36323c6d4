#!/bin/busybox sh
# The box's first process: from the initramfs to the agent on the host's own root.
# What it mounts where is told on the kernel's command line: box.live=tag:path[,tag:path...] cached,
# the keeper telling of changes; box.plain=tag:path[,...] not cached; box.modules=path;
# box.fast=path[,path...] from disks.
set -e
export PATH=/bin
bb=/bin/busybox
$bb mkdir -p /dev /proc /sys
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
trap '$bb echo "box: init failed"; $bb poweroff -f' EXIT

for module in /modules/*.ko; do
    $bb insmod "$module" || $bb echo "box: cannot load $module"
done

value() { # NAME: prints the value of NAME= on the command line
    for word in $($bb cat /proc/cmdline); do
        case $word in "$1"=*) $bb echo "${word#*=}" ;; esac
    done
}
split() { # LIST: prints the parts between commas on lines
    $bb echo "$1" | $bb tr , '\n'
}
nine=trans=virtio,version=9p2000.L,msize=512000,access=any

$bb mount -t 9p -o "$nine,cache=loose,ro" root /lower
$bb mount -t tmpfs -o mode=0755,size=75% rw /rw
$bb mkdir /rw/upper /rw/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new
$bb mount -t tmpfs -o mode=0755 run /new/run
$bb mount -t tmpfs -o mode=1777,size=75% tmp /new/tmp
for entry in $(split "$(value box.plain)"); do
    $bb mkdir -p "/new${entry#*:}"
    $bb mount -t 9p -o "$nine,cache=none" "${entry%%:*}" "/new${entry#*:}"
done
live=
for entry in $(split "$(value box.live)"); do
    $bb mkdir -p "/new${entry#*:}"
    $bb mount -t 9p -o "$nine,cache=loose" "${entry%%:*}" "/new${entry#*:}"
    live="$live ${entry#*:}"
done
modules=$(value box.modules)
if [ -n "$modules" ]; then
    $bb mkdir -p "/new/lib/modules/$($bb uname -r)"
    $bb mount -o bind "/new$modules" "/new/lib/modules/$($bb uname -r)"
fi
disks=abcdefgh
for path in $(split "$(value box.fast)"); do
    disk=/dev/vd${disks%"${disks#?}"}
    disks=${disks#?}
    $bb mount -t ext4 -o noatime,nobarrier "$disk" "/new$path"
done

for place in dev proc sys; do $bb mount -o move /$place /new/$place; done
$bb mkdir -p /new/dev/pts /new/dev/shm
$bb mount -t devpts -o gid=5,mode=0620,ptmxmode=0666 devpts /new/dev/pts
$bb mount -t tmpfs -o mode=1777 shm /new/dev/shm
$bb mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
$bb ln -s /proc/self/fd /new/dev/fd
for name in stdin:0 stdout:1 stderr:2; do $bb ln -s "/proc/self/fd/${name#*:}" "/new/dev/${name%:*}"; done
# What commands write to live folders shall be seen outside while they still run.
$bb echo 100 > /new/proc/sys/vm/dirty_expire_centisecs
$bb echo 100 > /new/proc/sys/vm/dirty_writeback_centisecs
$bb echo advise > /new/sys/kernel/mm/transparent_hugepage/shmem_enabled
$bb ifconfig lo 127.0.0.1 up
$bb hostname devbox
[ -c /new/dev/kvm ] || $bb echo "box: no /dev/kvm"

for port in /new/sys/class/virtio-ports/*; do
    [ "$($bb cat "$port/name")" = kvmpv.agent ] && device=/dev/${port##*/}
done
box=/run/kvmpv-box
$bb mkdir -p /new$box/host
$bb cp /agent /bin/busybox /new$box
# The host's root, for through.sh to take from: writable, so in a namespace that nobody else is in.
$bb touch /new$box/host.ns
$bb cat >/new$box/start <<END
$box/busybox unshare --mount=$box/host.ns $box/busybox mount -t 9p -o $nine,cache=none host $box/host
exec $box/agent --serve $device $live
END
trap '$bb echo "box: init failed"; $bb poweroff -f' EXIT
exec $bb switch_root /new $box/busybox sh $box/start </dev/console >/dev/console 2>&1

#!/bin/bash
# Boots this machine's own systemd in namespaces of its own: box.py runs it, inside `unshare`.
#
#   boot.sh PROJECT PYTHON NOTIFY     the folders of the project, of its Python, and of the socket `notify`
#
# The root is an overlay whose changes are in memory. The machine's own units are hidden, but for those of the
# distribution. Everything goes with the last process.
set -euo pipefail
project=$1 python=$2 notify=$3

mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/changes /mnt/work /mnt/root /mnt/project /mnt/project-work
mount -t overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work overlay /mnt/root
root=/mnt/root

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd"
for name in stdin:0 stdout:1 stderr:2; do ln -s "fd/${name#*:}" "$root/dev/${name%:*}"; done
for folder in run tmp etc/systemd/system; do mount -t tmpfs -o mode=755 tmpfs "$root/$folder"; done
chmod 1777 "$root/tmp"
mkdir "$root/run/host"
mount --bind "$notify" "$root/run/host"
rm -rf "$root/var/log/journal"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
hostname box

# The project at /opt/runnerd, as systemd/README.md has it, with its environment, whose paths are others there.
mkdir -p "$root/opt/runnerd"
mount -t overlay -o "lowerdir=$project,upperdir=/mnt/project,workdir=/mnt/project-work" overlay "$root/opt/runnerd"
for file in "$root"/opt/runnerd/.venv/bin/runner* "$root"/opt/runnerd/.venv/lib/*/site-packages/__editable__*; do
    sed -i "s|$project|/opt/runnerd|g" "$file"
done
mkdir -p "$root$python"
mount --bind "$python" "$root$python"
folder=$python
while [ "$folder" != / ]; do
    folder=$(dirname "$folder")
    chmod o+rx "$root$folder"
done

cd "$root"
mkdir before
pivot_root . before
umount -l /before
exec env -i container=runnerd-tests NOTIFY_SOCKET=/run/host/notify PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no

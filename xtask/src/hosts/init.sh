#!/bin/busybox sh
# Process 1 of a host: mounts what programs expect, loads the modules, runs the steps of a
# scenario, and powers off. What a step says goes to the port that is called results.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/applets
/bin/busybox mkdir -p /applets /proc /sys /dev /tmp /run /root
/bin/busybox --install -s /applets
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mount -t debugfs debugfs /sys/kernel/debug
chmod 1777 /tmp
# What a VMM discards of huge pages of its own stays charged to it, and would count as the guest's.
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
ip link set lo up
ulimit -n 65536
for module in /modules/*.ko; do
    [ -f "$module" ] && insmod "$module"
done
. /settings
exec 3>"$results"
stty -F "$results" raw 2>/dev/null

uptime() {
    cut -d' ' -f1 /proc/uptime
}

# step NAME SECONDS COMMAND…
step() {
    name=$1 limit=$2
    shift 2
    echo "@begin $name $(uptime)" >&3
    timeout -s KILL "$limit" "$@" >&3 2>&1 </dev/null
    status=$?
    echo >&3
    echo "@end $name $status $(uptime)" >&3
    # A guest of a step that was killed goes on otherwise.
    killall -q -9 "$emulator" zerosweep
    rm -rf /tmp/* /run/zerosweep
}

echo "@host $(uname -r)" >&3
. /steps
sync
poweroff -f

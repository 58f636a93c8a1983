#!/bin/bash
# The virtual Grace host's first process: what an installed system would have done by the time
# sshd answers. The root file system is read-only; what must be writable is a tmpfs.
export PATH=/usr/sbin:/usr/bin HOME=/root TERM=vt100 LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /tmp /root /var/tmp; do mount -t tmpfs tmpfs "$place"; done
# As Debian does: no program can be run from here.
mount -t tmpfs -o nosuid,nodev,noexec,mode=755 tmpfs /run
chmod 1777 /tmp /dev/shm /var/tmp
chmod 700 /root
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /run/sshd
# What QEMU takes for the guests' second flash has the size of the flash. The rest is a hole.
cp /usr/share/hil/firmware-variables /run/
truncate -s 64M /run/firmware-variables
touch -d @0 /run/firmware-variables  # it is the same after each boot
hostname -F /etc/hostname
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
/usr/sbin/sshd -D -e 2>/dev/ttyAMA0 &
while :; do setsid -c bash -i </dev/ttyAMA0 >/dev/ttyAMA0 2>&1; done

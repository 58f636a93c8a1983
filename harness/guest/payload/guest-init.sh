#!/bin/sh
# The guest's first process: mounts, a word that all is ready, and a shell on the console.
export PATH=/bin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmpfs /tmp
hostname guest
# The driver finds its port a moment after init is started.
tries=100
until [ -c /dev/hvc0 ] && (: <>/dev/hvc0) 2>/dev/null; do
    tries=$((tries - 1))
    if [ $tries = 0 ]; then
        echo "~HIL-UNFIT~ no /dev/hvc0 (CONFIG_VIRTIO_CONSOLE)" >/dev/ttyAMA0
        poweroff -f
    fi
    usleep 50000
done
exec </dev/hvc0 >/dev/hvc0 2>&1
stty -echo
echo "~HIL-READY~"
# Without -i: no prompt, no line editing. `sh -i` gives a person both.
while :; do setsid sh -c 'exec sh <>/dev/hvc0 >&0 2>&1'; done

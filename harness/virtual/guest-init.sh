#!/bin/sh
# The guest's first process: mounts, a word that all is ready, and a shell on the console.
export PATH=/bin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmpfs /tmp
hostname guest
exec </dev/ttyAMA0 >/dev/ttyAMA0 2>&1
stty -echo
echo "~HIL-READY~"
# Without -i: no prompt, no line editing. `sh -i` gives a person both.
while :; do setsid sh -c 'exec sh <>/dev/ttyAMA0 >&0 2>&1'; done

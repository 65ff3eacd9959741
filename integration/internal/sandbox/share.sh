#!/bin/busybox sh
# Process 1 of an emulated machine's start: mounts the folder that the host shares
# and becomes what the kernel's command line names there.
for module in $(/bin/busybox cat /modules/order); do
	/bin/busybox insmod "/modules/$module"
done
/bin/busybox mount -o ro -t virtiofs root /root
exec /bin/busybox switch_root -c /dev/console /root "$@"

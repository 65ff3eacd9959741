#!/bin/busybox sh
# Process 1 of the tests' own guest: loads the drivers beside it, asks for an
# address on every NIC, fetches what fetch= on the kernel's command line names,
# and powers off. Before, with tag=VID it asks for an address by a frame with
# that tag, and with spoof=MAC by a frame from that MAC. With no-drivers it loads
# none, with no-dhcp it sends frames but does not ask, and with stay it stays.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
has() { case " $(cat /proc/cmdline) " in *" $1 "*) ;; *) return 1 ;; esac; }
has no-drivers || for module in $(cat /modules/order); do
	insmod "/modules/$module" || echo "own-guest: no driver $module"
done
ip link set lo up
for nic in /sys/class/net/eth*; do
	nic=${nic##*/}
	ip link set "$nic" up
	if has no-dhcp; then
		arping -D -c 2 -w 2 -I "$nic" 192.0.2.250 >/dev/null 2>&1
		continue
	fi
	udhcpc -i "$nic" -n -q -f -t 8 -T 1 -s /lease >/dev/null 2>&1 || echo "own-guest: $nic no lease"
done
for word in $(cat /proc/cmdline); do
	case $word in
	fetch=*) echo "own-guest: fetched $(timeout 20 wget -q -O - "${word#fetch=}" 2>&1)" ;;
	tag=*)
		ip link add link eth0 name tagged type vlan id "${word#tag=}" && ip link set tagged up
		arping -D -c 2 -w 2 -I tagged 192.0.2.250 >/dev/null 2>&1
		;;
	spoof=*)
		ip link set eth0 down && ip link set eth0 address "${word#spoof=}" && ip link set eth0 up
		arping -D -c 2 -w 2 -I eth0 192.0.2.250 >/dev/null 2>&1
		;;
	esac
done
echo "own-guest: done"
has stay && while :; do sleep 60; done
poweroff -f

#!/bin/bash
# script.sh DIR FIRMWARE: what vmrun is measured against. A NAT network with DHCP
# and DNS and on it a VM, with ip, iptables, dnsmasq and QEMU; its QMP is
# DIR/qmp.sock. SIGTERM ends the VM and takes everything away. Changes of one
# kind go to one process: one per rule would take several times as long.
set -euo pipefail

dir=$1 firmware=$2
bridge=byhand0 tap=byhand1 subnet=10.99.0.0/24 gateway=10.99.0.1
forwarding=$(</proc/sys/net/ipv4/ip_forward)

make_network() {
	ip -batch - <<-END
		link add $bridge type bridge
		address add $gateway/24 dev $bridge
		link set $bridge up
		tuntap add $tap mode tap vnet_hdr
		link set $tap master $bridge up
	END
	iptables-restore --noflush --wait <<-END
		*filter
		:BYHAND-FWD -
		:BYHAND-IN -
		-A BYHAND-FWD -o $bridge -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		-A BYHAND-FWD -o $bridge -j REJECT
		-A BYHAND-FWD -s $subnet -i $bridge -j ACCEPT
		-A BYHAND-FWD -i $bridge -j REJECT
		-A BYHAND-IN -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		-A BYHAND-IN -p udp --dport 67 -j ACCEPT
		-A BYHAND-IN -p udp --dport 53 -j ACCEPT
		-A BYHAND-IN -p tcp --dport 53 -j ACCEPT
		-A BYHAND-IN -p icmp -j ACCEPT
		-A BYHAND-IN -j REJECT
		-I FORWARD -i $bridge -j BYHAND-FWD
		-I FORWARD -o $bridge -j BYHAND-FWD
		-I INPUT -i $bridge -j BYHAND-IN
		COMMIT
		*nat
		-A POSTROUTING -s $subnet ! -o $bridge -j MASQUERADE
		COMMIT
	END
	echo 1 >/proc/sys/net/ipv4/ip_forward
	dnsmasq --conf-file=/dev/null --no-hosts --interface="$bridge" --except-interface=lo --bind-interfaces \
		--dhcp-range=10.99.0.2,10.99.0.254 --dhcp-authoritative --domain=byhand.internal \
		--dhcp-leasefile="$dir/leases" --pid-file="$dir/dnsmasq.pid"
}

remove_network() {
	kill "$(<"$dir/dnsmasq.pid")"
	ip -batch - <<-END
		link delete $tap
		link delete $bridge
	END
	iptables-restore --noflush --wait <<-END
		*filter
		-D FORWARD -i $bridge -j BYHAND-FWD
		-D FORWARD -o $bridge -j BYHAND-FWD
		-D INPUT -i $bridge -j BYHAND-IN
		-F BYHAND-FWD
		-F BYHAND-IN
		-X BYHAND-FWD
		-X BYHAND-IN
		COMMIT
		*nat
		-D POSTROUTING -s $subnet ! -o $bridge -j MASQUERADE
		COMMIT
	END
	echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
	rm "$dir/qmp.sock" "$dir/leases"
}

end() {
	kill "$qemu"
	wait "$qemu" || true
	remove_network
	exit 0
}

echo begin
make_network
echo network up
# The devices, and the order of the options, are those of vmrun.
qemu-system-x86_64 -no-user-config -nodefaults -display none -name guest=byhand \
	-machine q35,accel=tcg,usb=off,vmport=off,graphics=off -cpu max -smp 1 -m 512M -rtc base=utc \
	-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
	-boot strict=on -serial "file:$dir/console.log" -qmp "unix:$dir/qmp.sock,server=on,wait=off" \
	-netdev "tap,id=n0,ifname=$tap,script=no,downscript=no" \
	-device virtio-net-pci,netdev=n0,mac=52:54:00:99:00:02,bootindex=0 \
	-object rng-builtin,id=rng0 -device virtio-rng-pci,rng=rng0 -device pvpanic -action panic=shutdown \
	-S -bios "$firmware" &
qemu=$!
trap end TERM
wait "$qemu"

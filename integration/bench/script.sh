#!/bin/bash
# script.sh DIR FIRMWARE [PORTS]: what vmrun is measured against. A NAT network with
# DHCP and DNS and on it a VM, with ip, iptables, dnsmasq and QEMU; its QMP is
# DIR/qmp.sock. With PORTS there are so many TAPs in the place of the VM. SIGTERM
# ends the VM and takes everything away. Changes of one kind go to one process: one
# per rule would take several times as long.
set -euo pipefail

dir=$1 firmware=$2
bridge=byhand0 tap=byhand1 ports=99 subnet=10.99.0.0/24 gateway=10.99.0.1
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
	rm -f "$dir"/*.sock "$dir/leases"
}

add_port() {
	ip -batch - <<-END
		tuntap add byhand-p$1 mode tap vnet_hdr
		link set byhand-p$1 master $bridge group $ports up
	END
	echo "port $1"
}

# remove_ports asks once for all: each removal by itself takes as long.
remove_ports() {
	ip link delete group $ports
	echo ports gone
	remove_network
	while kill -0 "$dnsmasq" 2>/dev/null; do :; done
	echo all gone
	kill "$idle"
	exit 0
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
if [ $# = 3 ]; then
	dnsmasq=$(<"$dir/dnsmasq.pid")
	sleep infinity &
	idle=$!
	trap remove_ports TERM
	echo port 1
	for ((p = 2; p <= $3; p++)); do add_port "$p"; done
	wait "$idle"
fi
# The devices, and the order of the options, are those of vmrun.
qemu-system-x86_64 -no-user-config -nodefaults -display none -name guest=byhand \
	-machine q35,accel=tcg,usb=off,vmport=off,graphics=off -cpu max -smp 1 -m 512M -rtc base=utc \
	-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
	-boot strict=on -serial "file:$dir/console.log" -qmp "unix:$dir/qmp.sock,server=on,wait=off" \
	-netdev "tap,id=n0,ifname=$tap,script=no,downscript=no" \
	-device virtio-net-pci,netdev=n0,mac=52:54:00:99:00:02,bootindex=0 \
	-object rng-builtin,id=rng0 -device virtio-rng-pci,rng=rng0 \
	-device virtio-balloon-pci,id=balloon0,deflate-on-oom=on,free-page-reporting=on -device pvpanic -device virtio-serial-pci \
	-chardev "socket,id=agent,path=$dir/agent.sock,server=on,wait=off" -device virtserialport,chardev=agent,name=org.byhand.agent \
	-chardev "socket,id=qga,path=$dir/qga.sock,server=on,wait=off" -device virtserialport,chardev=qga,name=org.qemu.guest_agent.0 \
	-device pcie-root-port,id=hot0,bus=pcie.0,chassis=1,addr=0x10.0,multifunction=on \
	-device pcie-root-port,id=hot1,bus=pcie.0,chassis=2,addr=0x10.1 \
	-device pcie-root-port,id=hot2,bus=pcie.0,chassis=3,addr=0x10.2 \
	-device pcie-root-port,id=hot3,bus=pcie.0,chassis=4,addr=0x10.3 -action panic=shutdown \
	-S -bios "$firmware" &
qemu=$!
trap end TERM
wait "$qemu"

#!/bin/busybox sh
# What udhcpc calls with a lease's parts in the environment.
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -n "$router" ] && ip route add default via "${router%% *}" dev "$interface"
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
echo "own-guest: $interface $(cat "/sys/class/net/$interface/address") $ip/$mask gw ${router:-none} dns ${dns:-none}" >/dev/console

package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AwaitNeighbour makes the kernel ask for a neighbour, by ARP or neighbour
// discovery, and waits until it has answered or ctx ends. One that is there for
// good is never asked for.
func AwaitNeighbour(ctx context.Context, index int, ip netip.Addr) error {
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("follow neighbours: %w", err)
	}
	defer news.Close()
	// Often enough to heed the context.
	if err := news.SetReceiveTimeout(&unix.Timeval{Usec: 100_000}); err != nil {
		return fmt.Errorf("follow neighbours: %w", err)
	}
	known, err := readNeighbours(index, Neighbour.lasting)
	if err != nil {
		return err
	}
	for _, n := range known {
		if n.IP == ip && n.State&unix.NUD_PERMANENT != 0 {
			return nil
		}
	}
	asked := Neighbour{IP: ip, Flags: unix.NTF_USE}
	// What the kernel knows may be stale, and would not be asked for at once.
	if err := request(unix.RTM_DELNEIGH, 0, asked.message(index)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget neighbour %s: %w", ip, err)
	}
	for ctx.Err() == nil {
		if err := request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, asked.message(index)); err != nil {
			return fmt.Errorf("ask for neighbour %s: %w", ip, err)
		}
		if answered, err := followNeighbour(ctx, news, index, ip); answered || err != nil {
			return err
		}
	}
	return fmt.Errorf("no answer from %s", ip)
}

// AwaitUp waits until an interface has begun to transmit or ctx ends. A bridge whose
// first port has just come drops everything until then: the kernel activates its
// queue by a work item of its own (net/core/link_watch.c), and tells so afterwards.
func AwaitUp(ctx context.Context, index int) error {
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("follow links: %w", err)
	}
	defer news.Close()
	if err := news.SetReceiveTimeout(&unix.Timeval{Usec: 100_000}); err != nil {
		return fmt.Errorf("follow links: %w", err)
	}
	l, err := netlink.LinkByIndex(index)
	for err == nil && (l == nil || l.Attrs().Index != index || l.Attrs().OperState != netlink.OperUp) {
		if ctx.Err() != nil {
			return errors.New("it has no carrier")
		}
		l, err = nextLink(news)
	}
	return err
}

// nextLink is what the kernel tells of a link; nil where it tells nothing yet.
func nextLink(news *nl.NetlinkSocket) (last netlink.Link, err error) {
	messages, _, err := news.Receive()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("follow links: %w", err)
	}
	for _, m := range messages { // the kernel sends one at a time
		if m.Header.Type == unix.RTM_NEWLINK {
			if last, err = netlink.LinkDeserialize((*unix.NlMsghdr)(&m.Header), m.Data); err != nil {
				return nil, fmt.Errorf("follow links: %w", err)
			}
		}
	}
	return last, nil
}

// followNeighbour waits until the kernel has asked in vain or got an answer.
func followNeighbour(ctx context.Context, news *nl.NetlinkSocket, index int, ip netip.Addr) (answered bool, err error) {
	for ctx.Err() == nil {
		messages, _, err := news.Receive()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("follow neighbours: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_NEWNEIGH {
				continue
			}
			n, on, err := newNeighbour(m.Data)
			switch {
			case err != nil || on != index || n.IP != ip:
			case n.State&unix.NUD_REACHABLE != 0:
				return true, nil
			case n.State&unix.NUD_FAILED != 0:
				return false, nil // ask again
			}
		}
	}
	return false, nil
}

// Uptime is how long the host has been up, suspended or not: lifetimes run by it.
func Uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // Linux has this clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

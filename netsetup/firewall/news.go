package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// newsGroup is NFNLGRP_NFTABLES: who is in it is told each change of nftables,
// those by iptables-nft among them (linux/netfilter/nfnetlink.h).
const newsGroup = 7

// newsBuffer is for a burst of changes, in bytes.
const newsBuffer = 1 << 20

// Everything stands for all tables, of which changes may have been missed.
const Everything = "*"

// Follow calls changed with the name of each table of nftables that somebody
// changes, until ctx ends, and with Everything as soon as it would hear of
// changes. The families are IPv4 and, with "inet " before the name, inet. An error says that it could not go on.
func Follow(ctx context.Context, changed func(table string)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (newsGroup - 1)})
	if err != nil {
		return fmt.Errorf("follow nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer func() {
		if stop() {
			c.Close()
		}
	}()
	c.SetReadBuffer(newsBuffer) // with less, more is missed
	changed(Everything)
	for {
		messages, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("follow nftables: %w", err)
		}
		for _, m := range messages {
			if name, ok := changedTable(m); ok {
				changed(name)
			}
		}
	}
}

// changedTable is the table that a message is about.
func changedTable(m netlink.Message) (string, bool) {
	const header = 4 // nfgenmsg
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < header {
		return "", false
	}
	prefix, ok := map[byte]string{unix.NFPROTO_IPV4: "", unix.NFPROTO_INET: "inet "}[m.Data[0]]
	if !ok {
		return "", false
	}
	d, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return "", false
	}
	for d.Next() {
		if d.Type() == unix.NFTA_TABLE_NAME { // the same number in all kinds
			return prefix + d.String(), true
		}
	}
	return "", false
}

// Of legacy iptables there is no news. What a change changes can be had by two
// system calls (linux/netfilter_ipv4/ip_tables.h).
const (
	legacyInfo    = 64 // IPT_SO_GET_INFO
	legacyEntries = 65 // IPT_SO_GET_ENTRIES

	legacyName   = 32 // XT_TABLE_MAXNAMELEN
	infoSize     = legacyName + 4 + 20 + 20 + 4 + 4
	entryNext    = 90 // offsets in struct ipt_entry
	entryCount   = 96
	entrySize    = 112
	entriesStart = legacyName + 8 // entries are aligned

	// maxLegacy is the size of a table, in bytes, up to which its rules are
	// compared, and not only how many they are.
	maxLegacy = 256 << 10
)

// LegacyPrint is something that changes with legacy iptables' rules; "" where
// nobody uses them.
func LegacyPrint() (string, error) {
	names, err := os.ReadFile(legacyNames)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(names) == 0 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return "", fmt.Errorf("look at legacy iptables: %w", err)
	}
	defer unix.Close(s)
	var print strings.Builder
	for _, table := range []string{"filter", "nat"} {
		if !slices.Contains(strings.Fields(string(names)), table) {
			continue // to ask for it would make it
		}
		text, err := legacyTable(s, table)
		if err != nil {
			return "", fmt.Errorf("look at legacy iptables, table %s: %w", table, err)
		}
		print.Write(text)
	}
	return print.String(), nil
}

// legacyTable is a table without its counters.
func legacyTable(s int, name string) ([]byte, error) {
	info := make([]byte, infoSize)
	copy(info, name)
	if err := getsockopt(s, legacyInfo, info); err != nil {
		return nil, err
	}
	size := binary.NativeEndian.Uint32(info[infoSize-4:])
	if size > maxLegacy {
		return info, nil
	}
	entries := make([]byte, entriesStart+size)
	copy(entries, name)
	binary.NativeEndian.PutUint32(entries[legacyName:], size)
	err := getsockopt(s, legacyEntries, entries)
	if errors.Is(err, unix.EAGAIN) {
		return info, nil // it has changed in between: the next time tells
	}
	if err != nil {
		return nil, err
	}
	clearCounters(entries[entriesStart:])
	return entries, nil
}

func clearCounters(entries []byte) {
	for len(entries) >= entrySize {
		clear(entries[entryCount:entrySize])
		next := int(binary.NativeEndian.Uint16(entries[entryNext:]))
		if next < entrySize || next > len(entries) {
			return
		}
		entries = entries[next:]
	}
}

// getsockopt is for options whose value says what is asked for.
func getsockopt(s, option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s), unix.SOL_IP, uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	runtime.KeepAlive(value)
	if errno != 0 {
		return errno
	}
	return nil
}

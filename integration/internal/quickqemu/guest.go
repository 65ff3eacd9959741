package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

// patience is for a request that the guest makes.
const patience = 10 * time.Second

// serveGuest is the guest, until it is killed.
func serveGuest(name, mac string, far *os.File) error {
	near, err := plug(mac)
	if err != nil {
		return err
	}
	go pump(near, far)
	go pump(far, near)
	if err := configure(); err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	if err := waitAtGate("/run/" + name + ".gate"); err != nil {
		return fmt.Errorf("wait at gate: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, name) })
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) { fetch(w, r.URL.RawQuery) })
	return http.ListenAndServe(":80", mux)
}

// plug makes the guest's NIC and returns what carries its frames.
func plug(mac string) (*os.File, error) {
	address, err := net.ParseMAC(mac)
	if err != nil {
		return nil, fmt.Errorf("make NIC: %w", err)
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1, NonPersist: true}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("make NIC: %w", err)
	}
	if err := errors.Join(netlink.LinkSetHardwareAddr(tap, address), netlink.LinkSetUp(tap)); err != nil {
		return nil, fmt.Errorf("set NIC up: %w", err)
	}
	return tap.Fds[0], nil
}

// pump passes frames on, one by each read, until a file is closed.
func pump(from, to *os.File) {
	frame := make([]byte, 1<<16)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		to.Write(frame[:n]) // what is lost is lost, as on any wire
	}
}

// configure asks for a lease and uses it.
func configure() error {
	client, err := nclient4.New("eth0", nclient4.WithTimeout(time.Second), nclient4.WithRetry(-1))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lease, err := client.Request(ctx)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: lease.ACK.YourIPAddr, Mask: lease.ACK.SubnetMask()}}
	if err := netlink.AddrAdd(link, address); err != nil {
		return err
	}
	for _, router := range lease.ACK.Router() {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: router}); err != nil {
			return err
		}
	}
	return nil
}

// waitAtGate reads a FIFO to its end, where there is one.
func waitAtGate(path string) error {
	gate, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer gate.Close()
	_, err = io.ReadAll(gate)
	return err
}

// fetch answers with what the guest gets from a URL.
func fetch(w http.ResponseWriter, url string) {
	client := http.Client{Timeout: patience}
	answer, err := client.Get(url)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	io.Copy(w, answer.Body) // who asks sees what is missing
}

package libvirt

import (
	"encoding/xml"
	"fmt"
	"math/bits"
	"net/netip"
)

// description is what matters of a network's XML (libvirt's formatnetwork.html).
type description struct {
	Name    string `xml:"name"`
	Forward *struct {
		Mode string `xml:"mode,attr"`
	} `xml:"forward"`
	Bridge struct {
		Name string `xml:"name,attr"`
	} `xml:"bridge"`
	MTU struct {
		Size int `xml:"size,attr"`
	} `xml:"mtu"`
	Addresses []addressed `xml:"ip"`
	Routes    []addressed `xml:"route"`
}

// addressed is an address with the length of its range in one of two forms.
type addressed struct {
	Address string `xml:"address,attr"`
	Netmask string `xml:"netmask,attr"`
	Prefix  string `xml:"prefix,attr"`
}

func parseNetwork(text string) (Network, error) {
	var d description
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return Network{}, fmt.Errorf("parse description: %w", err)
	}
	n := Network{Name: d.Name, Bridge: d.Bridge.Name, MTU: d.MTU.Size}
	if d.Forward != nil {
		n.Mode = d.Forward.Mode
		if n.Mode == "" {
			n.Mode = "nat" // libvirt's default
		}
	}
	for _, a := range append(d.Addresses, d.Routes...) {
		p, err := a.prefix()
		if err != nil {
			return Network{}, err
		}
		n.Ranges = append(n.Ranges, p)
	}
	return n, nil
}

// prefix is the range of an address, without netmask and prefix that of its
// class (virSocketAddrGetIPPrefix in libvirt's virsocketaddr.c).
func (a addressed) prefix() (netip.Prefix, error) {
	addr, err := netip.ParseAddr(a.Address)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("parse address: %w", err)
	}
	length := classLength(addr)
	switch {
	case a.Prefix != "":
		if _, err := fmt.Sscanf(a.Prefix, "%d", &length); err != nil {
			return netip.Prefix{}, fmt.Errorf("parse prefix %q: %w", a.Prefix, err)
		}
	case a.Netmask != "":
		if length, err = maskLength(a.Netmask); err != nil {
			return netip.Prefix{}, err
		}
	}
	p, err := addr.Prefix(length)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("parse range of %s: %w", a.Address, err)
	}
	return p, nil
}

func classLength(addr netip.Addr) int {
	if addr.Is6() {
		return 64
	}
	switch first := addr.As4()[0]; {
	case first < 128:
		return 8
	case first < 192:
		return 16
	}
	return 24
}

func maskLength(text string) (int, error) {
	mask, err := netip.ParseAddr(text)
	if err != nil {
		return 0, fmt.Errorf("parse netmask: %w", err)
	}
	length := 0
	for _, b := range mask.AsSlice() {
		length += bits.OnesCount8(b)
	}
	return length, nil
}

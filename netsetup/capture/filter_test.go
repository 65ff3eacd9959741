package capture

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// frames are one of each kind, by what they are.
var frames = map[string]string{
	"arp":       macs + "0806 0001080006040001 525400000002 0a000001 000000000000 0a000002",
	"broadcast": "ffffffffffff 525400000002 0806 0001080006040001 525400000002 0a000001 000000000000 0a000003",
	"icmp":      macs + "0800" + ipv4("01", "0a000001", "0a000002") + "0800f7ff 00000000",
	"http":      macs + "0800" + ipv4("06", "0a000001", "c0000201") + "c0000050 00000000 00000000 50020000 00000000",
	"ssh":       macs + "0800" + ipv4("06", "c0000201", "0a000001") + "0016c000 00000000 00000000 50020000 00000000",
	"dns":       macs + "0800" + ipv4("11", "0a000001", "0a000102") + "c0010035 00080000",
	"dhcp":      "ffffffffffff 525400000002 0800" + ipv4("11", "00000000", "ffffffff") + "00440043 00080000",
	"fragment":  macs + "0800 4500001c00000010 4011 0000 0a000001 0a000102 c0010035 00080000",
	"ping6":     macs + "86dd 60000000 0008 3a40" + addr6 + addr6 + "8000 0000 0000 0000",
	"dns6":      macs + "86dd 60000000 0008 1140" + addr6 + addr6 + "c0010035 00080000",
	"mld":       "333300000016 525400000002 86dd 60000000 0010 0001" + addr6 + addr6 + "3a00050200000000 8f000000 00000000",
	"tagged":    macs + "8100 000a 0800" + ipv4("11", "0a000001", "0a000002") + "c0010035 00080000",
	"short":     macs + "0800 45",
}

const (
	macs  = "525400000001 525400000002 "
	addr6 = "20010db8000000000000000000000001"
)

func ipv4(protocol, from, to string) string {
	return "4500 0028 0000 4000 40" + protocol + "0000" + from + to
}

func packets(t *testing.T) map[string]Packet {
	t.Helper()
	all := map[string]Packet{}
	for name, text := range frames {
		data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = Packet{Data: data, Length: len(data)}
	}
	return all
}

func wanted(t *testing.T, f Filter) []string {
	t.Helper()
	var names []string
	for name, p := range packets(t) {
		if f.Wants(p) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestFilter(t *testing.T) {
	for _, tt := range []struct{ expression, want string }{
		{"arp", "arp broadcast"},
		{"icmp", "icmp"},
		{"icmp6", "mld ping6"},
		{"ip6", "dns6 mld ping6"},
		{"tcp", "http ssh"},
		{"udp", "dhcp dns dns6 fragment tagged"},
		{"port 53", "dns dns6 tagged"},
		{"tcp port 53", ""},
		{"src port 22", "ssh"},
		{"dst port 22", ""},
		{"portrange 60-80", "dhcp http"},
		{"host 10.0.0.2", "arp icmp tagged"},
		{"10.0.0.2", "arp icmp tagged"},
		{"ip host 10.0.0.2", "icmp tagged"},
		{"arp host 10.0.0.2", "arp"},
		{"src 192.0.2.1", "ssh"},
		{"dst host 192.0.2.1", "http"},
		{"net 10.0.1.0/24", "dns fragment"},
		{"host 2001:db8::1 and udp", "dns6"},
		{"ether src 52:54:00:00:00:02 and broadcast", "broadcast dhcp"},
		{"ether host 52:54:00:00:00:02 and arp", "arp broadcast"},
		{"ether broadcast", "broadcast dhcp"},
		{"multicast and not broadcast", "mld"},
		{"vlan", "tagged"},
		{"vlan 10", "tagged"},
		{"vlan 11", ""},
		{"less 20", "short"},
		{"tcp and not port 22", "http"},
		{"!tcp && !udp && !arp && !ip6", "icmp short"},
		{"(tcp or udp) and port 53", "dns dns6 tagged"},
		{"arp or (port 67 or port 68)", "arp broadcast dhcp"},
		{"tcp or udp and port 53", "dns dns6 tagged"}, // from the left
		{"not not icmp", "icmp"},
		{"not (ip or ip6)", "arp broadcast"},
	} {
		f, err := ParseFilter(tt.expression)
		if err != nil {
			t.Errorf("%s: %v", tt.expression, err)
			continue
		}
		if diff := cmp.Diff(strings.Fields(tt.want), wanted(t, f), cmp.Transformer("set", func(s []string) string { return strings.Join(s, " ") })); diff != "" {
			t.Errorf("%s:\n%s", tt.expression, diff)
		}
		if f.String() != tt.expression {
			t.Errorf("%s reads %q", tt.expression, f)
		}
	}
	if f, err := ParseFilter("  "); err != nil || len(wanted(t, f)) != len(frames) {
		t.Errorf("the empty expression: %v, %v", wanted(t, f), err)
	}
}

func TestFilterFaults(t *testing.T) {
	for expression, want := range map[string]string{
		"foo":                        `unknown word "foo"`,
		"tcp and":                    "it ends where a primitive should be",
		"tcp port":                   "it ends where the value of tcp port should be",
		"tcp port http":              "want numbers from 0 to 65535",
		"port 65536":                 "want numbers from 0 to 65535",
		"portrange 80":               "want a range",
		"portrange 90-80":            "want numbers",
		"icmp port 80":               "icmp has no ports",
		"tcp host 10.0.0.1":          "write tcp and host 10.0.0.1",
		"host 10.0.0.1/24":           "want an address",
		"net 10.0.0.1":               "want an address",
		"ether host 10.0.0.1":        "want a MAC address",
		"(tcp":                       `want ")", got the end`,
		"tcp)":                       `want and, or, or the end, got ")"`,
		"tcp udp":                    `got "udp"`,
		"vlan 4096":                  "want a number from 0 to 4095",
		"less":                       "want a number of bytes, got the end",
		"tcp broadcast":              "only ether takes broadcast",
		strings.Repeat("(", 1000000): "it nests deeper than",
	} {
		_, err := ParseFilter(expression)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %.200v, want %q", expression, err, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("tcp port 80 or (arp and not vlan 3)", []byte("\x52\x54\x00\x00\x00\x01\x52\x54\x00\x00\x00\x02\x08\x00\x45"))
	f.Add("host 10.0.0.1", []byte{})
	f.Fuzz(func(t *testing.T, expression string, data []byte) {
		filter, err := ParseFilter(expression)
		if err != nil {
			return
		}
		filter.Wants(Packet{Data: data, Length: len(data)})
	})
}

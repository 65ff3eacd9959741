package firewall

import (
	"slices"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	const none = "no NAT"
	tests := []struct {
		wish  string
		facts Facts
		want  Backend
		lacks Backend
	}{
		{"", Facts{}, NFTables, ""},
		{"auto", Facts{Command: IPTables}, NFTables, ""},
		{"nftables", Facts{}, NFTables, ""},
		{"iptables", Facts{Command: IPTablesLegacy}, IPTablesLegacy, ""},
		{"auto", Facts{NoNFTables: none, Command: IPTables}, IPTables, ""},
		{"nftables", Facts{NoNFTables: none, Command: IPTables}, "", NFTables},
		{"iptables", Facts{NoCommand: "not installed"}, "", IPTables},
		{"auto", Facts{NoNFTables: none, NoCommand: "not installed"}, "", IPTables},
	}
	for _, tt := range tests {
		wish, err := ParseWish(tt.wish)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tt.facts.Choose(wish)
		lack, _ := err.(*LackError)
		switch {
		case got != tt.want:
			t.Errorf("%q, %+v: got %q, want %q", tt.wish, tt.facts, got, tt.want)
		case (lack != nil) != (tt.lacks != "") || lack != nil && lack.Backend != tt.lacks:
			t.Errorf("%q, %+v: error %v, want one about %q", tt.wish, tt.facts, err, tt.lacks)
		}
	}
	if _, err := ParseWish("ipfw"); err == nil {
		t.Error("ipfw is taken for a firewall")
	}
}

func TestNewFilter(t *testing.T) {
	tests := []struct {
		name, saved string
		want        Filter
	}{
		{"idle", "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n", Filter{}},
		{"ufw", ":INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n", Filter{Blocks: true}},
		{"docker", ":INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER-USER\n", Filter{Blocks: true, Docker: true}},
		{"docker's chain without a way there", ":DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n", Filter{}},
		{"a last rule", ":FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n", Filter{Blocks: true}},
		{"only ours", "-A INPUT -i vmrx -j VMR-x-IN\n-A FORWARD -i vmrx -j VMR-x-FWD\n", Filter{}},
		{"output", "-A OUTPUT -j DROP\n", Filter{}},
		{"torn", ":FORWARD\n-A\n", Filter{}},
	}
	for _, tt := range tests {
		tt.want.Backend = IPTablesLegacy
		if got := newFilter(IPTablesLegacy, tt.saved); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestBlocking(t *testing.T) {
	f := Facts{Filters: []Filter{{Backend: IPTablesNFT}, {Backend: IPTablesLegacy, Blocks: true}}}
	if got := f.Blocking(Auto, NFTables); !slices.Equal(got, f.Filters[1:]) {
		t.Errorf("auto: %+v", got)
	}
	if got := f.Blocking(WishNFTables, NFTables); len(got) > 0 {
		t.Errorf("nftables alone: %+v", got)
	}
	if got := f.Blocking(Auto, IPTables); len(got) > 0 {
		t.Errorf("iptables: %+v", got)
	}
}

// TestStandsIn: all rules and jumps of a chain have to be there, in its table.
func TestStandsIn(t *testing.T) {
	c := NewRules(Network{ID: "x", Bridge: "vmrx", Others: "vmr"}, IPTables).Jumped()[0]
	whole := "*filter\n:VMR-x-FWD - [0:0]\n-A FORWARD -o vmrx -j VMR-x-FWD\n-A FORWARD -i vmrx -j VMR-x-FWD\n" +
		"-A VMR-x-FWD -i vmrx -o vmrx -j ACCEPT\n-A VMR-x-FWD -o vmrx -j REJECT\n-A VMR-x-FWD -i vmrx -j REJECT\nCOMMIT\n"
	if !c.standsIn(whole) {
		t.Error("a whole chain does not stand")
	}
	lines := slices.Collect(strings.Lines(whole))
	for i := range len(lines) - 1 {
		var without string
		for j, l := range lines {
			if j != i {
				without += l
			}
		}
		if c.standsIn(without) {
			t.Errorf("a chain stands without %q", lines[i])
		}
	}
	if c.standsIn("*nat" + whole[len("*filter"):]) {
		t.Error("a chain of another table stands")
	}
}

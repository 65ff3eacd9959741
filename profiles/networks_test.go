package profiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadNetworks(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
		fault      string // "": none
	}{
		{"networks alone", "[networks.lan]\nmode = \"nat\"\n[networks.lab]\nmode = \"host-only\"\n", []string{"lab", "lan"}, ""},
		{"of a profile", "[boot]\nkernel = \"k\"\n[[nics]]\nnetwork = \"nat\"\n[networks.lan]\nmode = \"nat\"\n", []string{"lan", "nat"}, ""},
		{"user built in", "[boot]\nkernel = \"k\"\n[[nics]]\nnetwork = \"user\"\n[networks.lan]\nmode = \"nat\"\n", []string{"lan"}, ""},
		{"a base to build on", "[machine]\ncpus = 2\n[networks.lan]\nmode = \"nat\"\n", []string{"lan"}, ""},
		{"user mode", "[networks.lan]\nmode = \"nat\"\n[networks.own]\nmode = \"user\"\n", nil, ":4: networks.own.mode: user is QEMU's own network"},
		{"none", "# nothing\n", nil, ":1: defines no network"},
		{"only user", "[boot]\nkernel = \"k\"\n[[nics]]\nnetwork = \"user\"\n", nil, "defines no network"},
		{"unknown key", "[networks.lan]\nmode = \"nat\"\nsubnett = \"10.0.0.0/24\"\n", nil, `:3: networks.lan: unknown key "subnett": did you mean "subnet"?`},
		{"unknown table", "[network.lan]\nmode = \"nat\"\n", nil, `unknown key "network"`},
		{"the rest of a profile", "[machine]\ncpus = 0\n[boot]\nkernel = \"k\"\n[networks.lan]\nmode = \"nat\"\n", nil, ":2: machine.cpus: 0 is out of range"},
	}
	for _, tt := range tests {
		// Not a name that a machine could have: networks need none.
		path := filepath.Join(t.TempDir(), "My Networks.toml")
		if strings.Contains(tt.text, "boot") {
			path = filepath.Join(t.TempDir(), "web.toml")
		}
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		networks, err := LoadNetworks(path)
		if (err != nil) != (tt.fault != "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.fault)
			continue
		}
		var got []string
		for _, n := range networks {
			got = append(got, n.Name)
			if n.Dir != filepath.Dir(path) && !n.Shared {
				t.Errorf("%s: network %s is of folder %q", tt.name, n.Name, n.Dir)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: networks (-want +got):\n%s", tt.name, diff)
		}
	}
}

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
	"github.com/vmrun/vmrun/netsetup"
)

// The examples that run on any kernel, and the one that takes 802.1Q.
var plainExamples, taggedExample = []string{"bridge", "host-only", "nat", "user"}, "vlan"

// No example is left out below.
func TestExamplesAreKnown(t *testing.T) {
	files, err := filepath.Glob("../examples/*.toml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".toml"))
	}
	if diff := cmp.Diff(append(slices.Clone(plainExamples), taggedExample), names); diff != "" {
		t.Errorf("examples, as tested (-) and as there are (+):\n%s", diff)
	}
}

// Each example of the repository runs, and what run does is what plan has said,
// step for step.
func TestExamplesDoAsPlanned(t *testing.T) {
	beside(t)
	for _, name := range plainExamples {
		t.Run(name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables", "dnsmasq")...)
				testExample(t, name)
			})
		})
	}
}

func TestVLANExampleDoesAsPlanned(t *testing.T) {
	sandbox.Run8021Q(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		testExample(t, taggedExample)
	})
}

func testExample(t *testing.T, name string) {
	h, lan := newHost(t), world.NewLAN(t)
	if name == "bridge" {
		lan.ServeDHCP(t)
		lan.Plug(t, h.Namespace, "eth1")
		makeBridge(t, h)
	} else {
		lan.Uplink(t, h.Namespace, "eth1")
	}
	before := h.state(t)
	profile := extendExample(t, name)

	planned := plan(t, h, profile)
	h.restored(t, before) // planning changes nothing
	vm := h.run(t, profile)
	vm.expect(t, `vmrun-guest: eth0 \S+ \d+\.`)
	if diff := cmp.Diff(planned.steps(), h.stepsDone(t)); diff != "" {
		t.Errorf("steps, as planned (-) and done (+):\n%s", diff)
	}
	matchCommand(t, planned.Command)
	vm.say(t, "")
	vm.ends(t, 0)
	h.restored(t, before)
}

// extendExample makes the example's guest wait for a line and power off.
func extendExample(t *testing.T, name string) string {
	t.Helper()
	example, err := filepath.Abs("../examples/" + name + ".toml")
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("extends = %q\nname = %q\n[machine]\naccel = \"tcg\"\n%s", example, name, micro(t, "read -r line"))
	path := filepath.Join(t.TempDir(), name+".toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// planOutput is what the test reads of `vmrun plan --json`.
type planOutput struct {
	Networks []netsetup.Plan
	Command  []string
}

func plan(t *testing.T, h *host, profile string) (p planOutput) {
	t.Helper()
	m := h.start(t, h.command(t, "plan", "--json", profile))
	m.ends(t, 0)
	if err := json.Unmarshal([]byte(m.console.String()), &p); err != nil {
		t.Fatalf("plan: %v", err)
	}
	return p
}

func (p planOutput) steps() []string {
	var all []string
	for _, n := range p.Networks {
		for _, s := range n.Steps {
			all = append(all, s.Do)
		}
		for _, port := range n.Ports {
			for _, s := range port.Steps {
				all = append(all, s.Do)
			}
		}
	}
	return all
}

// stepsDone are the steps that the host's keepers have written down.
func (h *host) stepsDone(t *testing.T) []string {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(h.dir, "run/nets/*/keeper.log"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			var line struct{ Msg, Do string }
			if err := json.Unmarshal(lines.Bytes(), &line); err == nil && line.Msg == "step" {
				all = append(all, line.Do)
			}
		}
	}
	return all
}

var placeholder = regexp.MustCompile(`\\\{[^}]*\\\}`)

// matchCommand compares QEMU's command line with the planned one, where what
// only the launch can know stands in braces.
func matchCommand(t *testing.T, planned []string) {
	t.Helper()
	want := placeholder.ReplaceAllString(regexp.QuoteMeta(strings.Join(planned, " ")), `\S+`)
	running, err := hoststate.Running()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range running {
		if !strings.HasPrefix(p.Command, planned[0]) {
			continue
		}
		if !regexp.MustCompile("^" + want + "$").MatchString(p.Command) {
			t.Errorf("QEMU's command is\n%s\nand the planned one\n%s", p.Command, strings.Join(planned, " "))
		}
		return
	}
	t.Errorf("no %s runs", planned[0])
}

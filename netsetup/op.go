package netsetup

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// An op is one change of the host, as plain data. The plan lists ops, apply
// does them, and the undo of each is an op as well.
type op interface {
	do(*effects) error
	String() string
}

// effects is the world that ops change: the kernel, and the TAP that a port's
// ops open on the way.
type effects struct {
	kernel kernel
	claims *claims
	files  []*os.File
}

// step is one line of a plan. A step without undo changes only what an earlier
// step made, and goes with it.
type step struct {
	do   op
	undo undoOp
}

// undoOp is an op that the journal can hold.
type undoOp interface {
	op
	kind() string
}

// apply does steps in order, journalling each undo before its step. Where one
// fails, the caller undoes what the journal holds.
func apply(w *effects, j *journal, steps []step) error {
	for _, s := range steps {
		if s.undo != nil {
			if err := j.record(s.undo); err != nil {
				return err
			}
		}
		faultPoint(rightBefore, s.do)
		if err := s.do.do(w); err != nil {
			what, _, _ := strings.Cut(s.do.String(), "\n") // rules have a line each
			return fmt.Errorf("%s: %w", what, err)
		}
		faultPoint(rightAfter, s.do)
		j.logStep(s)
	}
	return nil
}

// errGone is what the kernel seam says of a thing that is not there. For an
// undo that is success.
var errGone = errors.New("not there")

func ignoreGone(err error) error {
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// addBridge makes the network's bridge.
type addBridge struct {
	Name, Title string
	MAC         MAC
	MTU         int
	Group       uint32
}

func (o addBridge) String() string {
	return fmt.Sprintf("add bridge %s (%s), MAC %s, MTU %d", o.Name, o.Title, o.MAC, o.MTU)
}

func (o addBridge) do(w *effects) error { return w.kernel.AddBridge(o) }

// addVLAN makes the 802.1Q sub-interface of an uplink.
type addVLAN struct {
	Name, Title string
	Uplink      string
	VLAN        int
	MTU         int
	Group       uint32
}

func (o addVLAN) String() string {
	return fmt.Sprintf("add VLAN %d of %s as %s (%s), MTU %d", o.VLAN, o.Uplink, o.Name, o.Title, o.MTU)
}

func (o addVLAN) do(w *effects) error { return w.kernel.AddVLAN(o) }

// openTAP makes a port's TAP by opening it; the open files keep it alive.
type openTAP struct {
	Name, Title string
	MAC         MAC
	MTU         int
	Queues      int
	Group       uint32
}

func (o openTAP) String() string {
	return fmt.Sprintf("open TAP %s (%s), MAC %s, MTU %d, queues %d", o.Name, o.Title, o.MAC, o.MTU, o.Queues)
}

func (o openTAP) do(w *effects) (err error) {
	w.files, err = w.kernel.OpenTAP(o)
	return err
}

// guard lets a port send untagged frames from its own MAC only.
type guard struct {
	Link  string
	MAC   MAC
	Trunk bool // tagged frames too
	Spoof bool // any source MAC
}

func (o guard) String() string {
	allowed := "untagged frames only, to and from it,"
	if o.Trunk {
		allowed = "frames with and without tag,"
	}
	if o.Spoof {
		return fmt.Sprintf("guard %s: %s from any MAC", o.Link, allowed)
	}
	return fmt.Sprintf("guard %s: %s from no MAC but %s", o.Link, allowed, o.MAC)
}

func (o guard) do(w *effects) error { return w.kernel.Guard(o) }

// pinMAC binds a guest's MAC to its port, so that no other port can attract
// its frames.
type pinMAC struct {
	Link string
	MAC  MAC
}

func (o pinMAC) String() string { return fmt.Sprintf("pin MAC %s to %s, learning off", o.MAC, o.Link) }

func (o pinMAC) do(w *effects) error { return w.kernel.PinMAC(o.Link, o.MAC) }

// enslave puts a link into a bridge.
type enslave struct{ Link, Bridge string }

func (o enslave) String() string { return fmt.Sprintf("put %s into %s", o.Link, o.Bridge) }

func (o enslave) do(w *effects) error { return w.kernel.Enslave(o.Link, o.Bridge) }

// setUp brings a link up.
type setUp struct{ Link string }

func (o setUp) String() string { return "bring up " + o.Link }

func (o setUp) do(w *effects) error { return w.kernel.SetUp(o.Link) }

// addAddress gives the host its address on the network.
type addAddress struct {
	Link    string
	Address netip.Prefix
}

func (o addAddress) String() string { return fmt.Sprintf("add address %s to %s", o.Address, o.Link) }

func (o addAddress) do(w *effects) error { return w.kernel.AddAddress(o.Link, o.Address) }

// setSysctl sets a per-interface sysctl of a link of ours: it dies with the
// link and needs no undo.
type setSysctl struct {
	Key   string // below /proc/sys, with slashes
	Value string
}

func (o setSysctl) String() string {
	return fmt.Sprintf("set %s = %s", strings.ReplaceAll(o.Key, "/", "."), o.Value)
}

func (o setSysctl) do(w *effects) error {
	err := w.kernel.SetSysctl(o.Key, o.Value)
	if errors.Is(err, errGone) && strings.HasPrefix(o.Key, "net/ipv6/") {
		return nil // a kernel without IPv6 has nothing to switch off
	}
	return err
}

// addRules adds rules of the firewall.
type addRules struct{ firewall.Rules }

func (o addRules) String() string {
	lines := append([]string{fmt.Sprintf("add firewall rules (%s)", o.Backend)}, o.Lines()...)
	return strings.Join(lines, "\n    ")
}

func (o addRules) do(w *effects) error { return w.kernel.AddRules(o.Rules) }

// undo is what removes the rules again.
func (o addRules) undo() undoOp {
	switch {
	case o.Backend != firewall.NFTables:
		return delRules{o.Backend, o.Jumped()}
	case o.Transit != "":
		return delTransit{o.ID, o.Transit}
	}
	return delTables{o.ID}
}

// trust has firewalld let a link's traffic pass. If it ends meanwhile, nothing is
// in the way.
type trust struct{ Link string }

func (o trust) String() string {
	return fmt.Sprintf("have firewalld trust %s, until it reloads", o.Link)
}

func (o trust) do(w *effects) error { return ignoreGone(w.kernel.Trust(o.Link)) }

// forward switches IPv4 forwarding on for a link of the host that is not ours.
type forward struct{ Link string }

func (o forward) String() string {
	return fmt.Sprintf("set net.ipv4.conf.%s.forwarding = 1, if it is not", o.Link)
}

func (o forward) do(w *effects) error { return w.claims.forward(w.kernel, o.Link) }

// note is a step of the keeper's own process: nothing on the host changes that
// would outlive it.
type note struct{ Text string }

func (o note) String() string { return o.Text }

func (o note) do(*effects) error { return nil }

// delLinks removes links of the network, as many at once as the kernel can. By its
// title, which no other link can have, one is known whatever its name is by then.
type delLinks struct {
	Group  uint32   `json:"group"`
	Names  []string `json:"names"`
	Titles []string `json:"titles,omitempty"` // altnames
}

func (o delLinks) kind() string   { return "del-links" }
func (o delLinks) String() string { return "delete " + strings.Join(o.Names, ", ") }

func (o delLinks) do(w *effects) error {
	return ignoreGone(w.kernel.DelLinks(o.Group, slices.Concat(o.Names, o.Titles)))
}

// delRules removes chains of iptables, their rules and the jumps to them.
type delRules struct {
	Backend firewall.Backend  `json:"backend"`
	Chains  []firewall.Jumped `json:"chains"`
}

func (o delRules) kind() string { return "del-rules" }

func (o delRules) String() string {
	var names []string
	for _, c := range o.Chains {
		names = append(names, c.Table+"/"+c.Name)
	}
	return fmt.Sprintf("delete firewall rules (%s): %s", o.Backend, strings.Join(names, ", "))
}

func (o delRules) do(w *effects) error { return ignoreGone(w.kernel.DelChains(o.Backend, o.Chains)) }

// delTables removes a network's tables of nftables.
type delTables struct {
	Network string `json:"network"`
}

func (o delTables) kind() string { return "del-tables" }

func (o delTables) String() string {
	return fmt.Sprintf("delete firewall rules (nftables): table ip %s", firewall.Table(o.Network))
}

func (o delTables) do(w *effects) error { return ignoreGone(w.kernel.DelTables(o.Network)) }

// delTransit takes a link from those that nftables keeps from transit.
type delTransit struct {
	Network string `json:"network"`
	Link    string `json:"link"`
}

func (o delTransit) kind() string { return "del-transit" }

func (o delTransit) String() string {
	return fmt.Sprintf("delete firewall rules (nftables): %s of table ip %s", o.Link, firewall.Table(o.Network))
}

func (o delTransit) do(w *effects) error { return ignoreGone(w.kernel.DelTransit(o.Network, o.Link)) }

// distrust takes a link from those that firewalld trusts.
type distrust struct {
	Link string `json:"link"`
}

func (o distrust) kind() string { return "distrust" }

func (o distrust) String() string { return "have firewalld no longer trust " + o.Link }

func (o distrust) do(w *effects) error { return ignoreGone(w.kernel.Distrust(o.Link)) }

// unforward gives a link's forwarding back: the last network that needed it
// restores what was before, if it is still as we left it.
type unforward struct {
	Link string `json:"link"`
}

func (o unforward) kind() string { return "unforward" }

func (o unforward) String() string {
	return fmt.Sprintf("restore net.ipv4.conf.%s.forwarding, unless another network needs it", o.Link)
}

func (o unforward) do(w *effects) error { return w.claims.unforward(w.kernel, o.Link) }

// journalVersion is the version of the undo operations below. An entry of
// another version is refused, never guessed at.
const journalVersion = 1

// undoEntry is an undo op as the journal has it.
type undoEntry struct {
	Kind string          `json:"op"`
	Arg  json.RawMessage `json:"arg"`
}

func encodeUndo(u undoOp) (undoEntry, error) {
	arg, err := json.Marshal(u)
	if err != nil {
		return undoEntry{}, fmt.Errorf("encode undo: %w", err)
	}
	return undoEntry{Kind: u.kind(), Arg: arg}, nil
}

func (e undoEntry) decode() (undoOp, error) {
	switch e.Kind {
	case delLinks{}.kind():
		return decodeUndo[delLinks](e)
	case delRules{}.kind():
		return decodeUndo[delRules](e)
	case delTables{}.kind():
		return decodeUndo[delTables](e)
	case delTransit{}.kind():
		return decodeUndo[delTransit](e)
	case distrust{}.kind():
		return decodeUndo[distrust](e)
	case unforward{}.kind():
		return decodeUndo[unforward](e)
	case leaveLibvirt{}.kind():
		return decodeUndo[leaveLibvirt](e)
	case giveBack{}.kind():
		return decodeUndo[giveBack](e)
	case delPolicyRules{}.kind():
		return decodeUndo[delPolicyRules](e)
	}
	return nil, fmt.Errorf("decode undo: unknown operation %q", e.Kind)
}

func decodeUndo[T undoOp](e undoEntry) (undoOp, error) {
	var u T
	if err := json.Unmarshal(e.Arg, &u); err != nil {
		return nil, fmt.Errorf("decode undo %s: %w", e.Kind, err)
	}
	return u, nil
}

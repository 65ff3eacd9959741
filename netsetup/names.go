package netsetup

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

// Names are derived, never random: after a crash they say what is whose. The
// kernel keeps 15 bytes of an interface's name, hence the hashes.
const (
	bridgePrefix = "vmr"
	uplinkPrefix = "vmu" // of a bridge that has taken a used uplink over, and is a way out to other networks
	vlanPrefix   = "vmv"
	tapPrefix    = "vmt"
)

var hashText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// names are the kernel's names of one network's parts.
type names struct {
	id     string // of the network, 10 characters
	bridge string
	vlan   string
	group  uint32 // link group of all links of the network
	title  string // for people: the altname of the bridge
}

// instance tells installations of vmrun on one machine apart: by their runtime
// folder and network namespace.
func instance(runtime string) (string, error) {
	now, err := here()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s\x00%d", filepath.Clean(runtime), now.Net), nil
}

// newNames derives the names of a network in an instance.
func newNames(instance string, spec Spec) names {
	sum := sha256.Sum256([]byte(instance + "\x00" + spec.key()))
	id := hashText.EncodeToString(sum[:])[:10]
	prefix := bridgePrefix
	if spec.Takeover {
		prefix = uplinkPrefix
	}
	return names{
		id:     id,
		bridge: prefix + id,
		vlan:   vlanPrefix + id,
		group:  binary.BigEndian.Uint32(sum[16:]) | 1<<31,
		title:  "vmrun-" + spec.Name + "-" + id,
	}
}

// tap is the name of a port's TAP: the same port has the same name each time.
func (n names) tap(port PortSpec) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", n.id, port.VM, port.NIC))
	return n.tapPrefix() + hashText.EncodeToString(sum[:])[:7]
}

// tapPrefix begins the names of the network's TAPs.
func (n names) tapPrefix() string { return tapPrefix + n.id[:5] }

// tapTitle is the altname of a port's TAP.
func (n names) tapTitle(port PortSpec) string {
	return fmt.Sprintf("vmrun-%s-nic%d-%s", port.VM, port.NIC, n.id)
}

// tapMAC is the host's side of a TAP: high, so that a bridge without an address
// of its own would never take it.
func tapMAC(guest MAC) MAC {
	guest[0] = 0xfe
	return guest
}

// bridgeMAC is the network's own address, the same at each start, so that
// guests' ARP caches outlive a restart.
func (n names) bridgeMAC() MAC {
	sum := sha256.Sum256([]byte("bridge\x00" + n.id))
	return MAC{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// key is the network's identity: the name, and the folder of the file that
// defines it unless it is shared by the whole host.
func (s Spec) key() string {
	if s.Shared {
		return s.Name
	}
	return s.Dir + "\x00" + s.Name
}

// ID tells a network from others of its name; Inspect knows it by that.
func (s Spec) ID() string { return s.folder() }

// folder is the network's folder below nets.
func (s Spec) folder() string {
	if s.Shared {
		return s.Name
	}
	sum := sha256.Sum256([]byte(s.Dir))
	return s.Name + "." + hashText.EncodeToString(sum[:])[:8]
}

// ours is the form of the names above: nobody else's "vmroute0" is taken for it.
var ours = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(vm[ruv][a-z2-7]{10}|vmt[a-z2-7]{12})$`) })

// isOurs tells a link that some vmrun made by its name.
func isOurs(link string) bool { return ours().MatchString(link) }

// isUplinkBridge tells a bridge that stands for an uplink of the host.
func isUplinkBridge(link string) bool { return isOurs(link) && strings.HasPrefix(link, uplinkPrefix) }

func netsFolder(runtime string) string { return filepath.Join(runtime, "nets") }

// hostFolder holds what is one per host and network namespace, whatever the
// instance: all of root's instances meet below /run.
func (p place) hostFolder(runtime string) string {
	base := runtime
	if fi, err := os.Stat("/run"); err == nil && syscall.Access("/run", 2) == nil && fi.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid()) {
		base = "/run/vmrun"
	}
	return filepath.Join(base, "host", fmt.Sprint(p.Net))
}

package guest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// nameFiles are the files by which the guest's programs resolve names, and its own
// name, kept as the leases of all cards say. It may be used by several goroutines.
type nameFiles struct {
	etc         string // folder
	setHostname func([]byte) error

	mu      sync.Mutex
	cards   []*nic            // with a lease; in their order
	written map[string]string // file's content, by its name
	named   bool              // the hostname is set
}

func newNameFiles() *nameFiles { return &nameFiles{etc: "/etc", setHostname: unix.Sethostname} }

// set notes the leases of cards; one without an address has none any more.
func (f *nameFiles) set(changed ...*nic) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range changed {
		f.forget(n.name())
		if n.lease.address.IsValid() {
			f.cards = append(f.cards, &nic{link: n.link, lease: n.lease, order: n.order})
		}
	}
	slices.SortFunc(f.cards, func(a, b *nic) int { return cmp.Compare(a.order, b.order) })
	return f.write()
}

// drop notes that a card is gone.
func (f *nameFiles) drop(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(name)
	return f.write()
}

func (f *nameFiles) forget(name string) {
	f.cards = slices.DeleteFunc(f.cards, func(n *nic) bool { return n.name() == name })
}

// write writes the files whose content is another one than the last time: what the
// guest's own programs have written meanwhile stays. A name that it has got, it
// keeps.
func (f *nameFiles) write() error {
	var leases []lease
	for _, n := range f.cards {
		leases = append(leases, n.lease)
	}
	var errs []error
	if host := hostname(leases); host != "" && !f.named {
		if err := f.setHostname([]byte(host)); err != nil {
			errs = append(errs, fmt.Errorf("set hostname %s: %w", host, err))
		}
		f.named = true
	}
	if f.written == nil {
		f.written = map[string]string{}
	}
	for file, text := range map[string]string{"resolv.conf": resolvConf(leases), "hosts": hosts(leases)} {
		if last, ok := f.written[file]; ok && last == text {
			continue
		}
		f.written[file] = text
		errs = append(errs, os.WriteFile(filepath.Join(f.etc, file), []byte(text), 0o644))
	}
	return errors.Join(errs...)
}

// hostname is the first name that a server gave, without its domain.
func hostname(leases []lease) string {
	for _, l := range leases {
		if host, _, _ := strings.Cut(l.hostname, "."); host != "" {
			return host
		}
	}
	return ""
}

// resolvConf is the content of /etc/resolv.conf; see resolv.conf(5), by which
// more than three servers are ignored.
func resolvConf(leases []lease) string {
	var b strings.Builder
	var domains, servers []string
	for _, l := range leases {
		if l.domain != "" && !slices.Contains(domains, l.domain) {
			domains = append(domains, l.domain)
		}
		for _, a := range l.dns {
			if s := a.String(); !slices.Contains(servers, s) && len(servers) < 3 {
				servers = append(servers, s)
			}
		}
	}
	if len(domains) > 0 {
		b.WriteString("search " + strings.Join(domains, " ") + "\n")
	}
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	return b.String()
}

// hosts is the content of /etc/hosts.
func hosts(leases []lease) string {
	text := "127.0.0.1 localhost\n::1 localhost\n"
	host := hostname(leases)
	for _, l := range leases {
		switch {
		case host == "":
		case l.domain != "":
			text += fmt.Sprintf("%s %s.%s %s\n", l.address.Addr(), host, l.domain, host)
		default:
			text += fmt.Sprintf("%s %s\n", l.address.Addr(), host)
		}
	}
	return text
}

package guest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// writeNames sets what the leases say about names: the host's own, and how
// others are resolved.
func writeNames(nics []*nic) error {
	var leases []lease
	for _, n := range nics {
		if n.lease.address.IsValid() {
			leases = append(leases, n.lease)
		}
	}
	var errs []error
	if host := hostname(leases); host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			errs = append(errs, fmt.Errorf("set hostname %s: %w", host, err))
		}
	}
	return errors.Join(append(errs,
		os.WriteFile("/etc/resolv.conf", []byte(resolvConf(leases)), 0o644),
		os.WriteFile("/etc/hosts", []byte(hosts(leases)), 0o644))...)
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

package dns

import (
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// resolverPort is where the resolvers of resolv.conf(5) listen.
const resolverPort = 53

// ResolvConf gives the name servers of a resolv.conf, read again whenever the
// file has changed: a laptop changes its network while machines run. A file that
// can't be read names none. The function may be called by many goroutines.
func ResolvConf(path string) func() []netip.AddrPort {
	var (
		mu      sync.Mutex
		seen    os.FileInfo
		servers []netip.AddrPort
	)
	return func() []netip.AddrPort {
		mu.Lock()
		defer mu.Unlock()
		now, err := os.Stat(path)
		if err != nil {
			seen, servers = nil, nil
			return nil
		}
		if seen == nil || !os.SameFile(seen, now) || !seen.ModTime().Equal(now.ModTime()) || seen.Size() != now.Size() {
			seen, servers = now, readServers(path)
		}
		return servers
	}
}

func readServers(path string) []netip.AddrPort {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	config, err := dns.ClientConfigFromReader(strings.NewReader(string(text)))
	if err != nil {
		return nil
	}
	var servers []netip.AddrPort
	for _, server := range config.Servers {
		if ip, err := netip.ParseAddr(server); err == nil {
			servers = append(servers, netip.AddrPortFrom(ip, resolverPort))
		}
	}
	return servers
}

package integration

import "testing"

// backends are what may carry a network's rules. Each proof is a table over them.
var backends = []string{"nftables", "iptables"}

// newHostWith is newHost with something given that carries its rules.
func newHostWith(t *testing.T, backend string) *host {
	t.Helper()
	h := newHost(t)
	h.firewall = backend
	return h
}

package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// forward asks the host's resolvers, one after the other, the one that answered
// last first, and passes on what they say.
func (s *Server) forward(ctx context.Context, query *dns.Msg, overTCP bool) *dns.Msg {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return refusal(query, dns.RcodeServerFailure)
	}
	resolvers := s.resolvers()
	var refused *dns.Msg
	var errs []any
	best := s.best.Load()
	for i := range uint32(len(resolvers)) {
		at := (best + i) % uint32(len(resolvers))
		answer, err := s.ask(ctx, resolvers[at], query, overTCP)
		switch {
		case err != nil:
			errs = append(errs, resolvers[at].String(), err)
		case answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused:
			refused = answer // another may do better
		default:
			s.best.Store(at)
			s.trouble.Store(false)
			return answer
		}
	}
	if refused != nil {
		return refused
	}
	if ctx.Err() == nil && !s.trouble.Swap(true) {
		s.cfg.Log.Warn("no resolver of the host answers", append([]any{"resolvers", len(resolvers)}, errs...)...)
	}
	return refusal(query, dns.RcodeServerFailure)
}

// resolvers are the host's, without ourselves: a query must not go round.
func (s *Server) resolvers() []netip.AddrPort {
	var others []netip.AddrPort
	for _, r := range s.cfg.Upstreams() {
		if r = netip.AddrPortFrom(r.Addr().Unmap(), r.Port()); !s.self[r] && r.Addr() != s.cfg.Address {
			others = append(others, r)
		}
	}
	return others
}

// ask has one resolver answer, within s.try. What is cut short by UDP is asked
// for again over TCP if the client can take the whole; if not, the client is to
// see that it was cut.
func (s *Server) ask(ctx context.Context, resolver netip.AddrPort, query *dns.Msg, overTCP bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.try)
	defer cancel()
	query = query.Copy()
	query.Id = dns.Id() // not the client's: a stranger could guess it
	answer, err := exchange(ctx, "udp", resolver, query)
	if err == nil && answer.Truncated && overTCP {
		answer, err = exchange(ctx, "tcp", resolver, query)
	}
	if err != nil {
		return nil, fmt.Errorf("ask resolver %s: %w", resolver, err)
	}
	return answer, nil
}

func exchange(ctx context.Context, network string, resolver netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	client := dns.Client{Net: network, Timeout: tryTime} // ctx may end earlier
	conn, err := client.DialContext(ctx, resolver.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	answer, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	if err != nil {
		return nil, err
	}
	if !answer.Response || len(answer.Question) != 1 || !sameQuestion(answer.Question[0], query.Question[0]) {
		return nil, errors.New("answer to another question")
	}
	return answer, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

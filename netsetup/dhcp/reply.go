package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// reply is what the server says to a request.
type reply struct {
	to   request
	kind dhcpv4.MessageType
	ip   netip.Addr // given or offered; zero: none
}

// bootpLen is the shortest BOOTP message (RFC 951), in bytes; some relays and
// boot ROMs drop what is shorter.
const bootpLen = 300

// headerLen is a message without its options, the magic cookie included.
const headerLen = 240

// seal makes the frame of a reply.
func (s *Server) seal(r reply) []byte {
	d := datagram{srcMAC: s.mac, src: s.cfg.Address, srcPort: serverPort, dstPort: clientPort, payload: s.message(r)}
	d.dstMAC, d.dst = r.destination()
	if r.to.relay.IsValid() {
		d.dstPort = serverPort
	}
	return appendFrame(make([]byte, 0, etherLen+ipv4Len+udpLen+len(d.payload)), d)
}

// destination follows RFC 2131, section 4.1: a client that has its address is
// spoken to there, another one at the address that it is about to get, by its
// MAC since it can't answer ARP yet, unless it asked for a broadcast. A refusal,
// which gives no address, is for everybody.
func (r reply) destination() (mac, netip.Addr) {
	switch {
	case r.to.relay.IsValid():
		return r.to.source, r.to.relay
	case r.to.ciaddr.IsValid() && r.kind == dhcpv4.MessageTypeAck:
		return r.to.client, r.to.ciaddr
	case r.ip.IsValid() && !r.to.IsBroadcast():
		return r.to.client, r.ip
	}
	return broadcastMAC, netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// message is the reply's DHCP message. The library would sort the options by
// their numbers; the client's own order is to be kept (RFC 2132, section 9.8).
func (s *Server) message(r reply) []byte {
	m := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        r.to.HWType,
		TransactionID: r.to.TransactionID,
		Flags:         r.to.Flags,
		ClientHWAddr:  r.to.ClientHWAddr,
		ClientIPAddr:  net.IPv4zero,
		YourIPAddr:    net.IPv4zero,
		ServerIPAddr:  net.IPv4zero,
		GatewayIPAddr: r.to.GatewayIPAddr,
	}
	if r.ip.IsValid() {
		m.YourIPAddr = r.ip.AsSlice()
	}
	if r.kind == dhcpv4.MessageTypeAck && r.to.ciaddr.IsValid() {
		m.ClientIPAddr = r.to.ciaddr.AsSlice()
	}
	b := m.ToBytes()[:headerLen]
	b = s.appendOptions(b, r)
	b = append(b, dhcpv4.OptionEnd.Code())
	return append(b, make([]byte, max(0, bootpLen-len(b)))...)
}

// appendOptions puts first what every reply has, then what the client asked for,
// in its order, then what a client needs whether it asked or not: without the
// mask it reaches nobody, with too large an MTU its connections hang.
func (s *Server) appendOptions(b []byte, r reply) []byte {
	b = appendOption(b, dhcpv4.OptionDHCPMessageType, []byte{byte(r.kind)})
	b = appendOption(b, dhcpv4.OptionServerIdentifier, s.cfg.Address.AsSlice())
	// RFC 6842: a client may share its MAC with others and tell by this.
	if id := r.to.Options.Get(dhcpv4.OptionClientIdentifier); 0 < len(id) && len(id) <= 255 {
		b = appendOption(b, dhcpv4.OptionClientIdentifier, id)
	}
	if r.kind == dhcpv4.MessageTypeNak {
		return appendOption(b, dhcpv4.OptionMessage, []byte("address not available"))
	}
	if r.ip.IsValid() {
		b = appendOption(b, dhcpv4.OptionIPAddressLeaseTime, seconds(s.cfg.LeaseTime))
	}
	hostname := s.leases.hostname(r.to.client)
	var done [256]bool
	for _, o := range append(s.asked(r.to), dhcpv4.OptionSubnetMask, dhcpv4.OptionInterfaceMTU) {
		code, value := o.Code(), s.options[o.Code()]
		if code == dhcpv4.OptionHostName.Code() {
			value = []byte(hostname)
		}
		timer := code == dhcpv4.OptionRenewTimeValue.Code() || code == dhcpv4.OptionRebindingTimeValue.Code()
		if len(value) == 0 || done[code] || timer && !r.ip.IsValid() {
			continue
		}
		done[code] = true
		b = appendOption(b, o, value)
	}
	return b
}

// asked is the client's parameter request list, or, without one, all that we
// know.
func (s *Server) asked(r request) []dhcpv4.OptionCode {
	if list := r.ParameterRequestList(); len(list) > 0 {
		return list
	}
	return []dhcpv4.OptionCode{
		dhcpv4.OptionRenewTimeValue,
		dhcpv4.OptionRebindingTimeValue,
		dhcpv4.OptionSubnetMask,
		dhcpv4.OptionRouter,
		dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionHostName,
		dhcpv4.OptionDomainName,
		dhcpv4.OptionBroadcastAddress,
		dhcpv4.OptionInterfaceMTU,
	}
}

// constantOptions are the options that are the same for each client, by code.
func constantOptions(cfg Config, pool Pool) map[uint8][]byte {
	options := map[uint8][]byte{
		dhcpv4.OptionSubnetMask.Code():         net.CIDRMask(pool.Subnet.Bits(), 32),
		dhcpv4.OptionBroadcastAddress.Code():   pool.broadcast().AsSlice(),
		dhcpv4.OptionDomainName.Code():         []byte(cfg.Domain),
		dhcpv4.OptionRenewTimeValue.Code():     seconds(cfg.LeaseTime / 2),
		dhcpv4.OptionRebindingTimeValue.Code(): seconds(cfg.LeaseTime * 7 / 8),
		dhcpv4.OptionRouter.Code():             cfg.Router.AsSlice(),
	}
	var servers []byte
	for _, ip := range cfg.DNS {
		servers = append(servers, ip.AsSlice()...)
	}
	options[dhcpv4.OptionDomainNameServer.Code()] = servers
	if cfg.MTU > 0 {
		options[dhcpv4.OptionInterfaceMTU.Code()] = binary.BigEndian.AppendUint16(nil, uint16(cfg.MTU))
	}
	return options
}

func seconds(d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(min(d/time.Second, 1<<32-2)))
}

// appendOption takes a value of up to 255 bytes.
func appendOption(b []byte, o dhcpv4.OptionCode, value []byte) []byte {
	return append(append(b, o.Code(), byte(len(value))), value...)
}

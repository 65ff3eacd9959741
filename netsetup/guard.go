package netsetup

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// verdicts of a direct-action filter (linux/pkt_cls.h).
const (
	actOK   = 0 // TC_ACT_OK
	actShot = 2 // TC_ACT_SHOT: drop
)

// guardProgram is the classic BPF program that judges each frame from a guest.
// It sits on the TAP itself, in front of any bridge, and dies with the TAP: no
// rule of the host is needed, and none can be left behind.
//
// The kernel takes the outer tag out of the frame before the filter runs; what
// was there is an extension (networking/filter.rst, SKF_AD_VLAN_TAG_PRESENT).
func guardProgram(g guard) []bpf.Instruction {
	var p []bpf.Instruction
	if !g.Trunk {
		p = dropTagged()
	}
	if !g.Spoof {
		drop := bpf.RetConstant{Val: actShot}
		p = append(p,
			bpf.LoadAbsolute{Off: 6, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(g.MAC[:4]), SkipTrue: 1}, drop,
			bpf.LoadAbsolute{Off: 10, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(g.MAC[4:])), SkipTrue: 1}, drop)
	}
	return append(p, bpf.RetConstant{Val: actOK})
}

// dropTagged goes on with what has no tag.
func dropTagged() []bpf.Instruction {
	drop := bpf.RetConstant{Val: actShot}
	p := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, drop,
		bpf.LoadAbsolute{Off: 12, Size: 2},
	}
	for _, tag := range []uint32{unix.ETH_P_8021Q, unix.ETH_P_8021AD, 0x9100} {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: tag, SkipTrue: 1}, drop)
	}
	return p
}

// Guard attaches the program where frames from the guest enter the host, and
// its half about tags where frames leave for the guest: on a bridge over a trunk
// it would see every tenant's.
func (h *host) Guard(g guard) error {
	index, err := h.Index(g.Link)
	if err != nil {
		return err
	}
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := h.nl.QdiscAdd(qdisc); err != nil {
		return guardError("add clsact", err)
	}
	if err := h.addFilter(index, netlink.HANDLE_MIN_INGRESS, guardProgram(g)); err != nil || g.Trunk {
		return guardError("add filter", err)
	}
	outward := append(dropTagged(), bpf.RetConstant{Val: actOK})
	return guardError("add filter", h.addFilter(index, netlink.HANDLE_MIN_EGRESS, outward))
}

// Guarded reads what the kernel counts for the queues in which guards are: one
// for both directions.
func (h *host) Guarded() (map[int]uint64, error) {
	all, err := retried(func() ([]netlink.Qdisc, error) { return h.nl.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	dropped := map[int]uint64{}
	for _, q := range all {
		if a := q.Attrs(); q.Type() == "clsact" && a.Statistics != nil && a.Statistics.Queue != nil {
			dropped[a.LinkIndex] = uint64(a.Statistics.Queue.Drops)
		}
	}
	return dropped, nil
}

// guardError says what a kernel without traffic control lacks.
func guardError(what string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return &MissingError{Feature: "cls_bpf", Reason: fmt.Sprintf("%s: this kernel lacks sch_ingress or cls_bpf (%v)", what, err)}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// addFilter adds a direct-action filter with a classic program: the netlink
// library only knows extended ones, which need more than CAP_NET_ADMIN.
func (h *host) addFilter(index int, parent uint32, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble guard: %w", err)
	}
	req := h.request(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(&nl.TcMsg{
		Family:  nl.FAMILY_ALL,
		Ifindex: int32(index),
		Parent:  parent,
		Info:    netlink.MakeHandle(1, nl.Swap16(unix.ETH_P_ALL)),
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	var ops []byte
	for _, i := range raw {
		ops = binary.NativeEndian.AppendUint16(ops, i.Op)
		ops = append(ops, i.Jt, i.Jf)
		ops = binary.NativeEndian.AppendUint32(ops, i.K)
	}
	options.AddRtAttr(nl.TCA_BPF_OPS_LEN, nl.Uint16Attr(uint16(len(raw))))
	options.AddRtAttr(nl.TCA_BPF_OPS, ops)
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(options)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// delGroup removes all links of a group by one request (rtnetlink.7,
// IFLA_GROUP). The caller has made sure that they are all ours.
func (h *host) delGroup(group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link group %d: %w", group, err)
	}
	return nil
}

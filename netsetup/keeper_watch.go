package netsetup

import (
	"context"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
)

// watchGuests looks after the TAPs of users without root, for as long as the
// keeper lives. Whoever has a TAP's file may change more of it than its frames:
// its MAC on the host's side, by which it could take another port's, and
// whether it outlives its file. The kernel tells, and who does so loses the port.
func (k *keeper) watchGuests(ctx context.Context) {
	k.watching.Do(func() {
		subscribe := func(news chan netlink.LinkUpdate) error {
			return netlink.LinkSubscribeWithOptions(news, ctx.Done(), netlink.LinkSubscribeOptions{
				ErrorCallback: k.missedNews(ctx), ReceiveBufferSize: receiveBuffer})
		}
		go follow(ctx, k.log, subscribe, k.dropForged)
	})
}

// dropForged takes away ports whose members have changed their TAP.
func (k *keeper) dropForged() {
	k.enter()
	defer k.exit()
	if k.phase != up {
		return
	}
	links, err := k.w.kernel.Links()
	if err != nil {
		k.log.Warn("look after TAPs", "cause", err)
		return
	}
	for _, h := range slices.Collect(maps.Values(k.ports)) {
		l, ok := (Facts{Links: links}).link(h.Link)
		if !ok || (peer{uid: h.UID}).trusted() || l.MAC == tapMAC(h.Spec.MAC) && !l.Persistent {
			continue
		}
		if k.ports[h.ID] != h {
			continue // it has left while another one was removed
		}
		k.log.Warn("took a port away: its member has changed its TAP", "vm", h.Spec.VM, "uid", h.UID, "link", h.Link,
			"mac", l.MAC.String(), "persistent", l.Persistent)
		if h.conn != nil {
			h.conn.Close()
		}
		k.removePort(h)
	}
}

package netsetup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// OpenTAP opens /dev/net/tun once per queue. The TAP is never made persistent:
// it lives as long as a copy of its files. IFF_VNET_HDR lets QEMU pass
// checksum and segmentation offloads through (kernel doc networking/tuntap).
func (h *host) OpenTAP(t openTAP) ([]*os.File, error) {
	files, err := openQueues(t.Name, t.Queues)
	if err != nil {
		return nil, err
	}
	if err := h.dressTAP(t); err != nil {
		return nil, errors.Join(err, closeAll(files))
	}
	return files, nil
}

// TUN opens the driver's device and closes it again.
func (h *host) TUN() error {
	f, err := openTUN()
	if err != nil {
		return err
	}
	return f.Close()
}

func openTUN() (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, &MissingError{Feature: "tun", Reason: "open /dev/net/tun: the kernel's tun driver is not there"}
	}
	return f, err
}

func openQueues(name string, queues int) ([]*os.File, error) {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	} else {
		flags |= unix.IFF_TUN_EXCL // somebody else's interface of this name is not joined
	}
	var files []*os.File
	for range queues {
		f, err := openQueue(name, flags)
		if err != nil {
			return nil, errors.Join(err, closeAll(files))
		}
		files = append(files, f)
	}
	return files, nil
}

func openQueue(name string, flags uint16) (*os.File, error) {
	f, err := openTUN()
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("name TAP %s: %w", name, err), f.Close())
	}
	req.SetUint16(flags)
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var ioctlErr error
	err = conn.Control(func(fd uintptr) { ioctlErr = unix.IoctlIfreq(int(fd), unix.TUNSETIFF, req) })
	if err := errors.Join(err, ioctlErr); err != nil {
		return nil, errors.Join(fmt.Errorf("attach to TAP %s: %w", name, err), f.Close())
	}
	return f, nil
}

// dressTAP gives a new TAP what TUNSETIFF does not take.
func (h *host) dressTAP(t openTAP) error {
	l, err := h.byName(t.Name)
	if err != nil {
		return err
	}
	req := h.request(unix.RTM_SETLINK, 0)
	link := nl.NewIfInfomsg(unix.AF_UNSPEC)
	link.Index = int32(l.Attrs().Index)
	req.AddData(link)
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(t.Group)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, t.MAC.HardwareAddr()))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(t.MTU))))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set link group %d, MAC %s, MTU %d: %w", t.Group, t.MAC, t.MTU, err)
	}
	return h.addTitle(l, t.Title)
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

package world

import "testing"

// InstallUFW puts the unpacked ufw, as Debian configures it, into the sandbox's
// /usr and /etc. The sandbox's /etc/resolv.conf is a new one afterwards.
func InstallUFW(t *testing.T) {
	t.Helper()
	mount(t, "overlay", "/usr", "lowerdir="+UnpackedDaemons()+":/usr")
	overlayEtc(t, unpacked("daemons/etc"))
	// What Debian's package does when it is configured.
	Tool(t, "sh", "-ec", "cp /usr/share/ufw/ufw.conf /usr/share/ufw/iptables/*.rules /etc/ufw")
}

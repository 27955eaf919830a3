package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a start waits for a port or the data directory. A process that was killed a moment ago
// still holds both until the kernel has torn down its memory, and its successor must not fail on that.
const grace = 2 * time.Second

// ErrDataDirInUse is wrapped by the error of Start when another process runs on the same data directory.
var ErrDataDirInUse = errors.New("data directory is in use")

// lockDataDir takes the data directory for this process. The lock is a kernel lock on an open file: it ends
// with the process, however that ends, so there is no stale lock to remove.
func lockDataDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("engine: open lock of the data directory: %w", err)
	}
	err = retryBriefly(ctx, unix.EWOULDBLOCK, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		owner := make([]byte, 32)
		n, _ := f.ReadAt(owner, 0) // only to make the message better
		_ = f.Close()
		return nil, fmt.Errorf("engine: %w: %s is held by process %s: stop that process, or give this one another data directory",
			ErrDataDirInUse, dir, strings.TrimSpace(string(owner[:n])))
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("engine: lock data directory %s: %w", dir, err)
	}
	return f, nil
}

// retryBriefly calls try until it fails with something other than busy, for at most grace.
func retryBriefly(ctx context.Context, busy error, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if !errors.Is(err, busy) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// listen opens addr, and explains itself if it cannot.
func listen(ctx context.Context, what, addr string) (net.Listener, error) {
	var l net.Listener
	err := retryBriefly(ctx, syscall.EADDRINUSE, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		return err
	})
	if err == nil {
		return l, nil
	}
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("engine: %s cannot listen on %s: another process has this address: "+
			"stop it (`ss -ltnp 'sport = :%s'` shows which), or choose another address: %w", what, addr, port, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("engine: %s cannot listen on %s: no interface of this machine has this address: "+
			"choose an address that `ip address` shows, or 0.0.0.0: %w", what, addr, err)
	default:
		return nil, fmt.Errorf("engine: %s cannot listen on %s: %w", what, addr, err)
	}
}

// probe makes sure that addr can be listened on by a server that takes only an address, and returns the
// address it resolved to. Another process can still take it before the server does; that server's own error
// is worse to read but does not go unnoticed.
func probe(ctx context.Context, what, addr string) (netip.AddrPort, error) {
	l, err := listen(ctx, what, addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ap := addrPort(l)
	if err := l.Close(); err != nil {
		return netip.AddrPort{}, fmt.Errorf("engine: %s: close %s: %w", what, addr, err)
	}
	host, _, err := net.SplitHostPort(addr)
	if err == nil && (host == "" || host == "0.0.0.0") {
		// The kernel reports [::] for both, and a server told to listen there fails where IPv6 is switched off.
		ap = netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port())
	}
	return ap, nil
}

// freePorts finds n free ports on one loopback address of our own.
//
// Of our own means a random one in 127.0.0.0/8: all of that is on lo, in every network namespace. Between the
// moment a port is found free here and the moment a server takes it, 127.0.0.1 can lose it to any outgoing
// connection or to another nextstack that starts; a random address practically cannot.
func freePorts(ctx context.Context, n int) ([]netip.AddrPort, error) {
	ip := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
	ports, err := freePortsOn(ctx, ip, n)
	if errors.Is(err, syscall.EADDRNOTAVAIL) { // lo carries only 127.0.0.1/32
		ports, err = freePortsOn(ctx, netip.AddrFrom4([4]byte{127, 0, 0, 1}), n)
	}
	return ports, err
}

func freePortsOn(ctx context.Context, ip netip.Addr, n int) ([]netip.AddrPort, error) {
	ports := make([]netip.AddrPort, n)
	for i := range ports {
		l, err := listen(ctx, "an internal service", netip.AddrPortFrom(ip, 0).String())
		if err != nil {
			return nil, err
		}
		defer l.Close() // all stay open until the last is found, or the kernel could hand out one twice
		ports[i] = addrPort(l)
	}
	return ports, nil
}

func addrPort(l net.Listener) netip.AddrPort {
	ap := l.Addr().(*net.TCPAddr).AddrPort() // always: only TCP is listened on
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// reachable is the address at which a process on this machine reaches a server that listens on ap.
func reachable(ap netip.AddrPort) netip.AddrPort {
	switch {
	case !ap.Addr().IsUnspecified():
		return ap
	case ap.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), ap.Port())
	}
}

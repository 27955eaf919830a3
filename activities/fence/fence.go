// Package fence powers nodes off by a device that does not need the node: its board management controller, say. It is the
// fastest proof that a silent node runs nothing any more.
package fence

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Driver is one device that switches one node. Both methods may be called again after any interruption. Errors are problems:
// unavailable while the device does not answer, unauthenticated if it does not take the user or the password.
type Driver interface {
	// PowerOff cuts the node's power, without asking its operating system, and returns when the device says that it is off.
	// A node that is off stays off, and that is success.
	PowerOff(ctx context.Context) error
	// Status reports whether the node has power.
	Status(ctx context.Context) (on bool, err error)
}

// Device is how to reach a device.
type Device struct {
	Driver   string // api.FenceIPMI
	Address  string // host or host:port
	User     string
	Password string
}

// Open returns the driver of a device. It speaks to nobody yet.
func Open(d Device) (Driver, error) {
	if d.Driver != api.FenceIPMI {
		return nil, problem.New(problem.Unsupported, "fence devices of kind %q are not known", d.Driver).Try("use %s", api.FenceIPMI)
	}
	return newIPMI(d)
}

// Opener decrypts what admission sealed; store.Vault does.
type Opener interface {
	Open(sealed []byte, aad string) (string, error)
}

// giveUp is when a device that leads nowhere is given up: the end of the node's lease may be near, and proves as much.
const giveUp = 30 * time.Second

// service implements the step.
type service struct {
	kv    store.KV
	vault Opener
	open  func(Device) (Driver, error)
	h     auth.Handle
	now   func() time.Time
}

// Register implements the step in reg. Devices and their passwords are read from kv and opened by vault.
func Register(reg activities.Registry, host *activities.Host, kv store.KV, vault Opener) {
	RegisterWith(reg, host, kv, vault, Open)
}

// RegisterWith is Register with drivers of one's own.
func RegisterWith(reg activities.Registry, host *activities.Host, kv store.KV, vault Opener, open func(Device) (Driver, error)) {
	s := &service{kv: kv, vault: vault, open: open, h: auth.ControlPlane("fence"), now: time.Now}
	activities.Implement(reg, host, steps.FenceNode, s.powerOff)
}

// powerOff powers the node off, if the calling operation still holds it and it has not been heard of since it became suspect:
// a late attempt must not take a node's power that is back at work.
func (s *service) powerOff(ctx context.Context, t steps.Token, n steps.NodeRef) (api.Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	a, err := store.Get[api.Agent](ctx, s.kv, s.h, "", n.Agent)
	if err != nil {
		return api.Proof{}, err
	}
	if a.Operation != t.Operation || a.Status.Alive() {
		return api.Proof{}, problem.New(problem.Stale, "agent %s is not to be powered off any more", a.Name)
	}
	device, err := s.device(ctx, a)
	if err != nil {
		return api.Proof{}, err
	}
	driver, err := s.open(device)
	if err != nil {
		return api.Proof{}, err
	}
	activities.Telling(ctx)(fmt.Sprintf("powering %s off by its fence device at %s", a.Name, device.Address))
	if err := driver.PowerOff(ctx); err != nil {
		return api.Proof{}, problem.Wrap(err, problem.Unavailable, "node %s cannot be powered off by its fence device", a.Name)
	}
	return api.Proof{
		Kind: api.ProofFence, At: s.now().UTC(),
		Detail: fmt.Sprintf("its fence device (%s at %s) has powered it off and says that it is off", device.Driver, device.Address),
	}, nil
}

func (s *service) device(ctx context.Context, a *api.Agent) (Device, error) {
	f := a.Spec.Fence
	if f == nil {
		return Device{}, problem.New(problem.Unsupported, "node %s has no fence device", a.Name).Try("give it one: gnext host set %s --fence ipmi://USER@ADDRESS --fence-password-file FILE", a.Name)
	}
	e, err := s.kv.Get(ctx, store.SecretKey(a.ID))
	if problem.Is(err, problem.NotFound) {
		return Device{}, problem.New(problem.Conflict, "the password of node %s's fence device is gone", a.Name).Try("set it again")
	}
	if err != nil {
		return Device{}, err
	}
	password, err := s.vault.Open(e.Value, a.ID)
	return Device{Driver: f.Driver, Address: f.Address, User: f.User, Password: password}, err
}

// split returns host and port of an address; the port may be missing.
func split(address string, port int) (string, int, error) {
	if host, p, err := net.SplitHostPort(address); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 || host == "" {
			return "", 0, problem.New(problem.Invalid, "%q is not the address of a fence device", address).Try("give host or host:port")
		}
		return host, int(n), nil
	}
	return address, port, nil
}

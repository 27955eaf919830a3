package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// pollEvery is how often a condition is looked at that nobody tells of.
const pollEvery = 20 * time.Millisecond

// What every stack has from the start.
const (
	Pool    = "default" // a directory of each node
	Shared  = "shared"  // a directory that all nodes see, if Options.Shared
	Ceph    = "ceph"    // in a Ceph cluster, if Options.Ceph
	Gluster = "gluster" // on a GlusterFS, if Options.Gluster
	Blank   = "blank"   // an image without a system: its guests run and do nothing
	Tiny    = "tiny"    // an image of a Linux that answers HTTP
	VPC     = "net"     // 10.1.0.0/16
	Subnet  = "net-a"   // 10.1.0.0/22
	Web     = "web"     // security group: TCP port 80 and ping from everywhere
)

// glusterVolume is the volume of GlusterFS that the pool Gluster is on.
const glusterVolume = "gv0"

// AwaitControl waits until the API answers.
func (s *Stack) AwaitControl(ctx context.Context) error {
	c, err := s.newClient("")
	if err != nil {
		return err
	}
	return s.await(ctx, "the API", s.Control, func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := c.Health(ctx)
		return err
	})
}

// awaitPort waits until the process takes connections.
func (s *Stack) awaitPort(ctx context.Context, p *Process, port int) error {
	if p == nil {
		return nil
	}
	return s.await(ctx, p.name, p, func() error {
		c, err := net.DialTimeout("tcp", s.address(port), time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// AwaitReport waits until the first node's agent, which was just started, has reported.
func (s *Stack) AwaitReport(ctx context.Context, since time.Time) error {
	return s.Hosts[0].AwaitReport(ctx, since)
}

// await polls until try succeeds; that the process ends meanwhile is an error at once.
func (s *Stack) await(ctx context.Context, what string, p *Process, try func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := Poll(ctx, pollEvery, func() error {
		if !p.Running() {
			cancel(fmt.Errorf("%s has ended: %w\n%s", p.name, p.ended(), p.Tail(20)))
			return errors.New("it does not run")
		}
		return try()
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", what, err)
	}
	return nil
}

// StartControl starts the control plane and returns when the API answers.
func (s *Stack) StartControl(ctx context.Context) error {
	if err := s.Control.Start(); err != nil {
		return err
	}
	return s.AwaitControl(ctx)
}

// KillLibvirtd is kill -9 of the first node's; virtual machines go on. It returns when the daemon is gone.
func (s *Stack) KillLibvirtd(ctx context.Context) error { return s.Hosts[0].KillLibvirtd(ctx) }

// StartLibvirtd starts the first node's, and returns when it answers.
func (s *Stack) StartLibvirtd(ctx context.Context) error { return s.Hosts[0].StartLibvirtd(ctx) }

func (s *Stack) newClient(token string) (*client.Client, error) {
	return client.New(client.Config{
		Host: s.net + ".1", Port: apiPort, Token: token, Transport: transport(), Patience: 30 * time.Second, DialPatience: 30 * time.Second,
		UserAgent: "nextstack-test",
	})
}

func (s *Stack) login(ctx context.Context) error {
	log, err := os.ReadFile(s.Control.log)
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(string(log), passwordLine)
	if !ok {
		return errors.New("the control plane told no password")
	}
	password, _, _ := strings.Cut(rest, "\n")
	c, err := s.newClient("")
	if err != nil {
		return err
	}
	in, err := c.Login(ctx, api.Login{User: "admin", Password: strings.TrimSpace(password)})
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	c.SetToken(in.Token)
	s.Client, s.Token, s.HTTP = c, in.Token, &http.Client{Transport: transport(), Timeout: time.Minute}
	return nil
}

// furnish makes what every stack has.
func (s *Stack) furnish(ctx context.Context, o Options) error {
	if out, err := exec.CommandContext(ctx, "truncate", "-s", "1M", s.path("images", "blank.raw")).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	pool := s.path("pool")
	if len(s.Hosts) > 1 {
		pool = s.path("s", "disks")
	}
	for _, make := range []func() error{
		func() error { return create(ctx, s, &api.PoolCreate{Name: Pool, Type: api.PoolDir, Path: pool}) },
		func() error {
			if !o.Shared {
				return nil
			}
			return create(ctx, s, &api.PoolCreate{Name: Shared, Type: api.PoolDir, Path: s.path("shared"), Shared: true})
		},
		func() error {
			if !o.Ceph {
				return nil
			}
			key, err := os.ReadFile(s.path("s", "ceph", "client.libvirt.key"))
			if err != nil {
				return err
			}
			source := api.PoolSource{Hosts: []string{s.net + ".1"}, Name: "vms", User: "libvirt"}
			return create(ctx, s, &api.PoolCreate{Name: Ceph, Type: api.PoolRBD, Source: source, Key: strings.TrimSpace(string(key))})
		},
		func() error {
			if !o.Gluster {
				return nil
			}
			source := api.PoolSource{Hosts: []string{s.net + ".1"}, Name: glusterVolume}
			return create(ctx, s, &api.PoolCreate{Name: Gluster, Type: api.PoolGluster, Source: source})
		},
		func() error {
			return create(ctx, s, &api.ImageCreate{Name: Blank, Format: api.FormatRaw, Path: s.path("images", "blank.raw")})
		},
		func() error {
			return create(ctx, s, &api.ImageCreate{Name: Tiny, Format: api.FormatQCOW2, Path: s.guest() + "/tiny.qcow2"})
		},
		func() error { return create(ctx, s, &api.VPCCreate{Name: VPC, CIDR: "10.1.0.0/16"}) },
		func() error { return create(ctx, s, &api.SubnetCreate{Name: Subnet, VPC: VPC, CIDR: "10.1.0.0/22"}) },
		func() error {
			return create(ctx, s, &api.SecurityGroupCreate{Name: Web, Rules: []api.Rule{
				{Direction: api.Ingress, Protocol: api.TCP, PortMin: 80, PortMax: 80, CIDR: "0.0.0.0/0"},
				{Direction: api.Ingress, Protocol: api.ICMP, CIDR: "0.0.0.0/0"},
				{Direction: api.Egress, Protocol: api.AnyIP, CIDR: "0.0.0.0/0"},
			}})
		},
	} {
		if err := make(); err != nil {
			return err
		}
	}
	return nil
}

// create makes one thing and waits until it is there.
func create[B client.Creation](ctx context.Context, s *Stack, body B) error {
	op, err := client.Create(ctx, s.Client, api.DefaultProject, body, client.Write{})
	if err != nil {
		return err
	}
	op, err = s.Client.Wait(ctx, op.ID, client.WaitOptions{})
	if err == nil && op.State != api.OpSucceeded {
		err = fmt.Errorf("%s of %s ended %s: %w", op.Kind, op.Target.Name, op.State, op.Error)
	}
	return err
}

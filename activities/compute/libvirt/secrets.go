package libvirt

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// secretUsage begins the name of secrets that are ours; the pool's ID follows.
const secretUsage = "nextstack pool "

// SetSecret implements compute.Secrets. The key is kept by libvirt, in a file that only root can read, so that guests can be started
// while the control plane is away.
func (d *Driver) SetSecret(ctx context.Context, pool, key string) error {
	raw, err := base64.StdEncoding.DecodeString(key)
	if !api.IsUUID(pool) || err != nil {
		return problem.New(problem.Invalid, "the key of pool %q is not one of Ceph", pool) // without the cause, which would quote it
	}
	xml, err := (&libvirtxml.Secret{
		Ephemeral: "no", Private: "yes", UUID: pool, Description: "Key of pool " + pool,
		Usage: &libvirtxml.SecretUsage{Type: "ceph", Name: secretUsage + pool},
	}).Marshal()
	if err != nil {
		return problem.Wrap(err, problem.Internal, "a secret cannot be written as XML")
	}
	return d.link.call(ctx, "keep the key of pool "+pool, func(c *libvirt.Connect) error {
		s, err := ownSecret(c, pool)
		if noSecret(err) {
			s, err = c.SecretDefineXML(xml, 0)
		}
		if err != nil {
			return err
		}
		defer s.Free() //nolint:errcheck // frees memory only
		return s.SetValue(raw, 0)
	})
}

// DropSecret implements compute.Secrets.
func (d *Driver) DropSecret(ctx context.Context, pool string) error {
	if !api.IsUUID(pool) {
		return problem.New(problem.Invalid, "%q is not the ID of a pool", pool)
	}
	return d.link.call(ctx, "forget the key of pool "+pool, func(c *libvirt.Connect) error {
		s, err := ownSecret(c, pool)
		if noSecret(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer s.Free() //nolint:errcheck // frees memory only
		if err := s.Undefine(); !noSecret(err) {
			return err
		}
		return nil
	})
}

// ListSecrets implements compute.Secrets.
func (d *Driver) ListSecrets(ctx context.Context) ([]string, error) {
	got := make(chan []string, 1)
	err := d.link.call(ctx, "list the keys of pools", func(c *libvirt.Connect) error {
		all, err := c.ListAllSecrets(0)
		if err != nil {
			return err
		}
		var out []string
		for i := range all {
			if usage, err := all[i].GetUsageID(); err == nil {
				if pool, ok := strings.CutPrefix(usage, secretUsage); ok && api.IsUUID(pool) {
					out = append(out, pool)
				}
			}
			all[i].Free() //nolint:errcheck // frees memory only
		}
		slices.Sort(out)
		got <- out
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

// ownSecret returns the secret of a pool. One of its ID that is not ours is a conflict.
func ownSecret(c *libvirt.Connect, pool string) (*libvirt.Secret, error) {
	s, err := c.LookupSecretByUUIDString(pool)
	if err != nil {
		return nil, err
	}
	if usage, err := s.GetUsageID(); err != nil || usage != secretUsage+pool {
		s.Free() //nolint:errcheck // frees memory only
		if err == nil {
			err = problem.New(problem.Conflict, "libvirt's secret %s is not ours", pool).Because("it is for %q", usage)
		}
		return nil, err
	}
	return s, nil
}

func noSecret(err error) bool {
	var e libvirt.Error
	return errors.As(err, &e) && e.Code == libvirt.ERR_NO_SECRET
}

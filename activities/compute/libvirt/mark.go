package libvirt

import (
	"context"
	"errors"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute/domain"
)

// MarkHA implements compute.Creator. The mark is changed in the domain that runs and in the one that it is started from.
func (d *Driver) MarkHA(ctx context.Context, vm string, ha bool) error {
	err := d.with(ctx, vm, "mark the domain", func(dom *libvirt.Domain) error {
		active, err := dom.IsActive()
		if err != nil {
			return err
		}
		persistent, err := dom.IsPersistent()
		if err != nil {
			return err
		}
		var where []libvirt.DomainModificationImpact
		if active {
			where = append(where, libvirt.DOMAIN_AFFECT_LIVE)
		}
		if persistent {
			where = append(where, libvirt.DOMAIN_AFFECT_CONFIG)
		}
		for _, w := range where {
			if err := remark(dom, w, ha); err != nil {
				return err
			}
		}
		return nil
	})
	if missing(err) {
		return nil
	}
	return err
}

func remark(dom *libvirt.Domain, where libvirt.DomainModificationImpact, ha bool) error {
	s, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, domain.Namespace, where)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_NO_DOMAIN_METADATA {
		return nil // it is ours by its other half
	}
	if err != nil {
		return err
	}
	m, err := domain.ReadMark(s)
	if err != nil || m.HA == ha {
		return err
	}
	m.HA = ha
	return dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, m.Element(), domain.Prefix, domain.Namespace, where)
}

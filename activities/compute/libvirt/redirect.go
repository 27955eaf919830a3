package libvirt

import (
	"context"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
)

// Redirect implements compute.Disks.
func (d *Driver) Redirect(ctx context.Context, vm string, now compute.RBDImage) error {
	return d.with(ctx, vm, "change how its disks are reached", func(dom *libvirt.Domain) error {
		if active, err := dom.IsActive(); err != nil || active {
			return err
		}
		xml, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
		if err != nil {
			return err
		}
		xml, changed, err := domain.Redirected(xml, now)
		if err != nil || !changed || ctx.Err() != nil {
			return err
		}
		c, err := dom.DomainGetConnect()
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // it is one more reference
		again, err := c.DomainDefineXML(xml)
		if err != nil {
			return err
		}
		return again.Free()
	})
}

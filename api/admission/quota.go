package admission

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// quotaUse is what one VM, or one volume that belongs to none, uses of its project's quota. A VM's root disk counts with it.
type quotaUse struct {
	VMs    int   `json:"vms,omitempty"`
	VCPUs  int   `json:"vcpus"`
	Memory int64 `json:"memory"`
	Disk   int64 `json:"disk"`
}

func (u quotaUse) plus(o quotaUse) quotaUse {
	return quotaUse{VMs: u.VMs + o.VMs, VCPUs: u.VCPUs + o.VCPUs, Memory: u.Memory + o.Memory, Disk: u.Disk + o.Disk}
}

func (u quotaUse) encode() (string, error) {
	value, err := json.Marshal(u)
	return string(value), problem.Wrap(err, problem.Internal, "the quota claim cannot be encoded")
}

func quotaOf(e store.Entry) (u quotaUse, err error) {
	err = json.Unmarshal(e.Value, &u)
	return u, problem.Wrap(err, problem.Internal, "the quota claim at %s cannot be read", e.Key)
}

// claimQuota takes what something new uses of its project's quota.
func (a *Admission) claimQuota(c *acceptance, r api.Resource, use quotaUse) error {
	m := r.GetMeta()
	value, err := use.encode()
	if err != nil {
		return err
	}
	c.claims(store.QuotaClaim(m.Project, m.ID), value)
	return a.withinQuota(c, r, use)
}

// growQuota makes something that is there use grown bytes of disk more; fewer, if that is negative: then what it used is given
// back when the operation succeeds.
func (a *Admission) growQuota(c *acceptance, r api.Resource, grown int64) error {
	m := r.GetMeta()
	key := store.QuotaClaim(m.Project, m.ID)
	e, err := c.kv.Get(c.ctx, key)
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the quota claim of %s %s cannot be read", r.ResourceKind().Singular(), m.Name)
	}
	use, err := quotaOf(e)
	if err != nil || grown == 0 {
		return err
	}
	use.Disk += grown
	value, err := use.encode()
	if err != nil {
		return err
	}
	if grown < 0 {
		c.op.Plan.PutIfDone = append(c.op.Plan.PutIfDone, api.Claim{Key: key, Value: value})
		return nil
	}
	c.reclaims(key, string(e.Value), value)
	return a.withinQuota(c, r, use)
}

// withinQuota checks that with use, which is what r uses now, its project stays within its quota, and that nobody else takes
// what is left of it in the same moment.
func (a *Admission) withinQuota(c *acceptance, r api.Resource, use quotaUse) error {
	m := r.GetMeta()
	project, err := store.Find[api.Project](c.ctx, c.kv, c.h, "", m.Project)
	if err != nil || project.Spec == (api.ProjectSpec{}) {
		return err
	}
	c.Unchanged(project)
	ledger, err := store.Ledger(c.ctx, c.kv, store.QuotaPrefix(m.Project))
	if err != nil {
		return err
	}
	c.Touch(store.QuotaPrefix(m.Project), ledger.Revision)
	for _, e := range ledger.Claims {
		if e.Key == store.QuotaClaim(m.Project, m.ID) {
			continue
		}
		u, err := quotaOf(e)
		if err != nil {
			return err
		}
		use = use.plus(u)
	}
	for _, q := range []struct {
		what        string
		limit, want int64
	}{
		{"VMs", int64(project.Spec.VMs), int64(use.VMs)},
		{"vCPUs", int64(project.Spec.VCPUs), int64(use.VCPUs)},
		{"bytes of memory", project.Spec.Memory, use.Memory},
		{"bytes of disk", project.Spec.Disk, use.Disk},
	} {
		if q.limit > 0 && q.want > q.limit {
			return problem.New(problem.Quota, "project %s may have %d %s", project.Name, q.limit, q.what).
				Because("with %s %s it would have %d", r.ResourceKind().Singular(), m.Name, q.want).Try("delete something, or ask an administrator for more")
		}
	}
	return nil
}

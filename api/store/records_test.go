package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

var (
	system = auth.ControlPlane("test")
	nobody auth.Handle
)

func newVM(name string) *api.VM {
	return &api.VM{Meta: api.Meta{ID: api.NewID(), Name: name, Project: "default"}, Spec: api.VMSpec{VCPUs: 2, Memory: api.GiB}}
}

// draft commits what change puts into a draft of the control plane.
func draft(kv store.KV, change func(*store.Draft)) error {
	d := store.NewDraft(system)
	change(d)
	_, err := d.Commit(context.Background(), kv)
	return err
}

func create(t *testing.T, kv store.KV, r api.Resource) {
	t.Helper()
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Create(r) }))
}

func TestNamesAreClaimedAndFreed(t *testing.T) {
	ctx, kv := context.Background(), store.NewMemory()
	vm := newVM("web")
	create(t, kv, vm)
	err := draft(kv, func(d *store.Draft) { d.Create(newVM("web")) })
	require.True(t, problem.Is(err, problem.Conflict))
	require.ErrorContains(t, err, `the name "web" is taken`)
	other := newVM("web")
	other.Project = "other"
	create(t, kv, other)
	create(t, kv, &api.Volume{Meta: api.Meta{ID: api.NewID(), Name: "web", Project: "default"}})

	for _, ref := range []string{"web", vm.ID} {
		got, err := store.Find[api.VM](ctx, kv, system, "default", ref)
		require.NoError(t, err)
		require.Equal(t, vm.ID, got.ID)
		require.Positive(t, got.Revision)
	}
	mine, err := store.List[api.VM](ctx, kv, system, "default")
	require.NoError(t, err)
	require.Len(t, mine, 1)
	all, err := store.List[api.VM](ctx, kv, system, "*")
	require.NoError(t, err)
	require.Len(t, all, 2)

	got, err := store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.NoError(t, err)
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Delete(got) }))
	_, err = store.Find[api.VM](ctx, kv, system, "default", "web")
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	_, err = store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	require.True(t, problem.Is(store.Load(ctx, kv, system, api.RefTo(vm), &api.VM{}), problem.NotFound))
	create(t, kv, newVM("web"))
}

func TestChangesOfWhatHasChangedFail(t *testing.T) {
	ctx, kv := context.Background(), store.NewMemory()
	vm := newVM("web")
	create(t, kv, vm)
	old, err := store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.NoError(t, err)
	fresh, err := store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.NoError(t, err)
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Unchanged(fresh) }))
	fresh.Status.Phase = api.PhaseRunning
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Update(fresh) }))
	for _, change := range []func(*store.Draft){
		func(d *store.Draft) { d.Update(old) },
		func(d *store.Draft) { d.Delete(old) },
		func(d *store.Draft) { d.Unchanged(old) },
	} {
		err := draft(kv, change)
		var c *store.Conflict
		require.ErrorAs(t, err, &c)
		require.Equal(t, store.Key(api.KindVM, "default", vm.ID), c.Condition.Key)
	}
	got, err := store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, got.Status.Phase)
}

func TestBlindChangesAreBugs(t *testing.T) {
	kv := store.NewMemory()
	for _, change := range []func(*store.Draft){
		func(d *store.Draft) { d.Update(newVM("web")) },
		func(d *store.Draft) { d.Delete(newVM("web")) },
		func(d *store.Draft) { d.Unchanged(newVM("web")) },
	} {
		require.True(t, problem.Is(draft(kv, change), problem.Internal))
	}
	entries, _, err := kv.List(context.Background(), "")
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestUnusedAndUsers(t *testing.T) {
	ctx, kv := context.Background(), store.NewMemory()
	image := &api.Image{Meta: api.Meta{ID: api.NewID(), Name: "debian", Project: "default"}}
	vm := newVM("web")
	create(t, kv, image)
	use := store.UseClaim(api.RefTo(image), api.RefTo(vm))
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Create(vm); d.Claim(use, "") }))
	image, err := store.Get[api.Image](ctx, kv, system, "default", image.ID)
	require.NoError(t, err)
	remove := func() error { return draft(kv, func(d *store.Draft) { d.Delete(image); d.Unused(image) }) }
	err = remove()
	require.True(t, problem.Is(err, problem.InUse), "%v", err)
	require.ErrorContains(t, err, "image debian is still in use")
	users, err := store.Users(ctx, kv, image)
	require.NoError(t, err)
	require.Equal(t, []string{"vm " + vm.ID}, users)
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Release(use) }))
	require.NoError(t, remove())
}

func TestMeaning(t *testing.T) {
	kv := store.NewMemory()
	mine := problem.New(problem.Locked, "somebody has it")
	claim := func() error {
		return draft(kv, func(d *store.Draft) {
			d.Claim("a", "1")
			d.Claim("b", "1")
			d.Meaning("b", mine)
		})
	}
	require.NoError(t, put(kv, "b", "0"))
	require.Same(t, mine, claim())
	require.NoError(t, put(kv, "a", "0"))
	err := claim()
	var c *store.Conflict
	require.ErrorAs(t, err, &c, "the first condition that does not hold has no meaning")
	require.Equal(t, "a", c.Condition.Key)
}

func TestRetry(t *testing.T) {
	ctx := context.Background()
	lost := &store.Conflict{Condition: store.Condition{Key: "a"}}
	var tries int
	require.NoError(t, store.Retry(ctx, func() error {
		if tries++; tries < 5 {
			return fmt.Errorf("wrapped: %w", lost)
		}
		return nil
	}))
	require.Equal(t, 5, tries)

	tries = 0
	boom := errors.New("boom")
	require.Equal(t, boom, store.Retry(ctx, func() error { tries++; return boom }))
	require.Equal(t, 1, tries)

	err := store.Retry(ctx, func() error { return lost })
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)

	ctx, cancel := context.WithCancel(ctx)
	tries = 0
	err = store.Retry(ctx, func() error { tries++; cancel(); return lost })
	require.True(t, problem.Is(err, problem.Timeout), "%v", err)
	require.Equal(t, 1, tries)

	// Pauses make room for those that it loses to, and end with the context.
	tries = 0
	short, stop := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer stop()
	err = store.Retry(short, func() error { tries++; return lost })
	require.Equal(t, problem.Timeout, problem.KindOf(err))
	require.Less(t, tries, 50)
}

// TestNobodyMayDoAnything goes through every way to records with a handle that allows nothing.
func TestNobodyMayDoAnything(t *testing.T) {
	ctx, kv := context.Background(), store.NewMemory()
	vm := newVM("web")
	create(t, kv, vm)
	vm, err := store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.NoError(t, err)
	c := runCache(t, kv, store.Root)
	before, revision, err := kv.List(ctx, "")
	require.NoError(t, err)

	drafted := func(change func(*store.Draft)) func() error {
		return func() error {
			d := store.NewDraft(nobody)
			change(d)
			_, err := d.Commit(ctx, kv)
			return err
		}
	}
	for name, do := range map[string]func() error{
		"get":         func() error { _, err := store.Get[api.VM](ctx, kv, nobody, "default", vm.ID); return err },
		"get none":    func() error { _, err := store.Get[api.VM](ctx, kv, nobody, "default", "none"); return err },
		"find":        func() error { _, err := store.Find[api.VM](ctx, kv, nobody, "default", "web"); return err },
		"find none":   func() error { _, err := store.Find[api.VM](ctx, kv, nobody, "default", "none"); return err },
		"list":        func() error { _, err := store.List[api.VM](ctx, kv, nobody, "default"); return err },
		"list all":    func() error { _, err := store.List[api.VM](ctx, kv, nobody, "*"); return err },
		"load":        func() error { return store.Load(ctx, kv, nobody, api.RefTo(vm), &api.VM{}) },
		"cached get":  func() error { _, err := store.GetCached[api.VM](c, nobody, "default", vm.ID); return err },
		"cached find": func() error { _, err := store.FindCached[api.VM](c, nobody, "default", "web"); return err },
		"cached list": func() error { _, err := store.ListCached[api.VM](c, nobody, "*", "", 0, nil); return err },
		"create":      drafted(func(d *store.Draft) { d.Create(newVM("db")) }),
		"update":      drafted(func(d *store.Draft) { d.Update(vm) }),
		"delete":      drafted(func(d *store.Draft) { d.Delete(vm) }),
		"unchanged":   drafted(func(d *store.Draft) { d.Unchanged(vm) }),
		"claim":       drafted(func(d *store.Draft) { d.Claim("claim", "1") }),
		"put":         drafted(func(d *store.Draft) { d.Put("claim", "1") }),
		"release":     drafted(func(d *store.Draft) { d.Release(store.NameClaim(api.KindVM, "default", "web")) }),
		"touch":       drafted(func(d *store.Draft) { d.Touch(store.NodePrefix("n"), 0) }),
		"all at once": drafted(func(d *store.Draft) { d.Claim("claim", "1"); d.Update(vm); d.Create(newVM("db")) }),
	} {
		require.True(t, problem.Is(do(), problem.Forbidden), "%s: %v", name, do())
	}
	after, at, err := kv.List(ctx, "")
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, revision, at)
}

// TestClaimsNeedTheAuthorityOfARecord is about somebody who may do some things: claims alone are not among them.
func TestClaimsNeedTheAuthorityOfARecord(t *testing.T) {
	ctx, kv := context.Background(), store.NewMemory()
	agent := auth.Authenticated(auth.Principal{Name: "n1", Role: auth.Agent})
	vm := newVM("web")
	create(t, kv, vm)
	vm, err := store.Get[api.VM](ctx, kv, agent, "default", vm.ID)
	require.NoError(t, err, "an agent may read VMs")

	d := store.NewDraft(agent)
	d.Unchanged(vm)
	d.Claim("claim", "1")
	_, err = d.Commit(ctx, kv)
	require.True(t, problem.Is(err, problem.Forbidden), "%v", err)

	d = store.NewDraft(agent)
	d.Create(&api.Agent{Meta: api.Meta{ID: "n1", Name: "node"}})
	d.Claim("claim", "1")
	_, err = d.Commit(ctx, kv)
	require.NoError(t, err)
}

func TestLedgerPreventsOvercommit(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx := context.Background()
		node := api.NewID()
		const room, claimers = 10, 50
		var placed, refused atomic.Int32
		parallel(claimers, func(i int) {
			err := store.Retry(ctx, func() error {
				ledger, err := store.Ledger(ctx, kv, store.NodePrefix(node))
				if err != nil {
					return err
				}
				used := 0
				for _, e := range ledger.Claims {
					var a api.Amount
					if err := json.Unmarshal(e.Value, &a); err != nil {
						return err
					}
					used += a.VCPUs
				}
				if used+1 > room {
					return problem.New(problem.NoCapacity, "full")
				}
				d := store.NewDraft(system)
				d.Claim(store.NodeClaim(node, fmt.Sprintf("vm-%d", i)), `{"vcpus":1}`)
				d.Touch(store.NodePrefix(node), ledger.Revision)
				_, err = d.Commit(ctx, kv)
				return err
			})
			switch {
			case err == nil:
				placed.Add(1)
			case problem.Is(err, problem.NoCapacity):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
		require.Equal(t, int32(room), placed.Load())
		require.Equal(t, int32(claimers-room), refused.Load())
		claims, _, err := kv.List(ctx, store.NodePrefix(node))
		require.NoError(t, err)
		require.Len(t, claims, room)
	})
}

func TestCheckSaysWhatCommitWouldAndWritesNothing(t *testing.T) {
	ctx, kv := context.Background(), store.NewMemory()
	vm := newVM("web")
	create(t, kv, vm)
	got, err := store.Get[api.VM](ctx, kv, system, "default", vm.ID)
	require.NoError(t, err)
	stale := *got
	require.NoError(t, draft(kv, func(d *store.Draft) { d.Update(got) }))
	_, before, err := kv.List(ctx, store.Root)
	require.NoError(t, err)
	used := problem.New(problem.InUse, "something is there")
	for name, change := range map[string]func(*store.Draft){
		"new name":      func(d *store.Draft) { d.Create(newVM("other")) },
		"taken name":    func(d *store.Draft) { d.Create(newVM("web")) },
		"stale":         func(d *store.Draft) { d.Update(&stale) },
		"something":     func(d *store.Draft) { d.Create(newVM("other")); d.None(store.Root, used) },
		"nothing":       func(d *store.Draft) { d.Create(newVM("other")); d.None(store.Root+"none/", used) },
		"blind":         func(d *store.Draft) { d.Update(newVM("blind")) },
		"moved ledger":  func(d *store.Draft) { d.Create(newVM("other")); d.Touch(store.NodePrefix("a"), 7) },
		"fresh ledger":  func(d *store.Draft) { d.Create(newVM("other")); d.Touch(store.NodePrefix("a"), 0) },
		"claim of none": func(d *store.Draft) { d.Claim(store.NodeClaim("a", "b"), "") },
	} {
		d := store.NewDraft(system)
		change(d)
		said := d.Check(ctx, kv)
		_, now, err := kv.List(ctx, store.Root)
		require.NoError(t, err)
		require.Equal(t, before, now, name)

		// On a copy, so that one commit does not change what the next would say.
		twin := store.NewMemory()
		create(t, twin, newVMWith(vm))
		first, err := store.Get[api.VM](ctx, twin, system, "default", vm.ID)
		require.NoError(t, err)
		require.NoError(t, draft(twin, func(d *store.Draft) { d.Update(first) }))
		d = store.NewDraft(system)
		change(d)
		_, did := d.Commit(ctx, twin)
		require.Equal(t, problem.KindOf(did), problem.KindOf(said), "%s: commit %v, check %v", name, did, said)
	}
	require.ErrorIs(t, func() error { d := store.NewDraft(system); d.None(store.Root, used); return d.Check(ctx, kv) }(), used)
	d := store.NewDraft(nobody)
	d.Create(newVM("other"))
	require.True(t, problem.Is(d.Check(ctx, kv), problem.Forbidden))
}

func newVMWith(like *api.VM) *api.VM {
	vm := newVM(like.Name)
	vm.ID = like.ID
	return vm
}

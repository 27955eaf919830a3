package storage_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

type byName map[string]any

func (b byName) RegisterActivityWithOptions(a any, o activity.RegisterOptions) { b[o.Name] = a }

// shelf is an image store that only counts.
type shelf map[string]bool

func (s shelf) Import(_ context.Context, in steps.ImageImport, _ func(api.Progress)) (steps.ImageImported, error) {
	s[in.Image] = true
	return steps.ImageImported{}, nil
}

func (s shelf) Remove(_ context.Context, image string) error { delete(s, image); return nil }
func (s shelf) Export(context.Context, steps.ImageExport, func(api.Progress)) (steps.ImageExported, error) {
	return steps.ImageExported{}, nil
}

func (s shelf) ExportUpload(context.Context, api.UploadExport, func(api.Progress)) (steps.ImageExported, error) {
	return steps.ImageExported{}, nil
}
func (s shelf) RemoveExport(context.Context, steps.ImageExport) error { return nil }
func (s shelf) RemoveUpload(string) error                             { return nil }

// TestALateImportComesNotAfterItsUndo: it would leave a file that nobody knows.
func TestALateImportComesNotAfterItsUndo(t *testing.T) {
	reg, files := byName{}, shelf{}
	storage.RegisterControl(reg, &activities.Host{Log: slog.New(slog.DiscardHandler)}, files)
	image := api.NewID()
	attempt := func(seq int) steps.Token { return steps.Token{Operation: "op", Step: "import", Epoch: 7, Seq: seq} }

	remove := reg[steps.RemoveImage.Name].(func(context.Context, steps.Envelope[steps.ImageFile]) (steps.Nothing, error))
	_, err := remove(t.Context(), steps.Envelope[steps.ImageFile]{Token: attempt(2), In: steps.ImageFile{Image: image}})
	require.NoError(t, err)

	load := reg[steps.ImportImage.Name].(func(context.Context, steps.Envelope[steps.ImageImport]) (steps.ImageImported, error))
	_, err = load(t.Context(), steps.Envelope[steps.ImageImport]{Token: attempt(1), In: steps.ImageImport{Image: image}})
	require.True(t, problem.Is(steps.FromActivity("import", "", err), problem.Stale), "%v", err)
	require.Empty(t, files)
}

// TestDisksGoFromNodeToNode by the steps of both.
func TestDisksGoFromNodeToNode(t *testing.T) {
	ctx, host := t.Context(), &activities.Host{Log: slog.New(slog.DiscardHandler)}
	var x storage.Exchange
	a, b := newWorld(t, &storage.Fake{}), newWorld(t, &storage.Fake{})
	b.pool, b.src = a.pool, a.src
	regA, regB := byName{}, byName{}
	storage.RegisterNode(regA, host, a.Pool, a.src, &x)
	storage.RegisterNode(regB, &activities.Host{Log: host.Log}, b.Pool, b.src, &x)
	for _, w := range []*world{a, b} {
		_, err := w.Prepare(ctx, w.pool)
		require.NoError(t, err)
	}
	p := a.plan()
	offer := regA[steps.OfferDisk.Name].(func(context.Context, steps.Envelope[steps.VMPlan]) (steps.DiskOffer, error))
	pull := regB[steps.PullDisk.Name].(func(context.Context, steps.Envelope[steps.DiskPull]) (steps.Nothing, error))
	token := steps.Token{Operation: "op", Step: "disk", Epoch: 1, Seq: 1}

	_, err := offer(ctx, steps.Envelope[steps.VMPlan]{Token: token, In: p})
	require.True(t, problem.Is(steps.FromActivity("disk", "", err), problem.NotFound), "%v", err)
	require.NoError(t, a.MakeDisk(ctx, p, a.src, nil))
	o, err := offer(ctx, steps.Envelope[steps.VMPlan]{Token: token, In: p})
	require.NoError(t, err)
	was := a.Pool.(*storage.Fake).Content(p)
	require.EqualValues(t, len(was), o.Size)
	for range 2 {
		_, err = pull(ctx, steps.Envelope[steps.DiskPull]{Token: token, In: steps.DiskPull{Plan: p, Offer: o}})
		require.NoError(t, err)
		require.Equal(t, was, b.Pool.(*storage.Fake).Content(p))
	}
	o.Ticket = "wrong"
	_, err = pull(ctx, steps.Envelope[steps.DiskPull]{Token: token, In: steps.DiskPull{Plan: p, Offer: o}})
	require.True(t, problem.Is(steps.FromActivity("disk", "", err), problem.Unavailable), "%v", err)
}

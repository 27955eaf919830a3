package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestADeprecatedImageCanBeUsedWithAWarning(t *testing.T) {
	d := newDesk(t).cloud()
	a := d.Admission
	yes, no, advice, none := true, false, "use debian", ""
	op, err := a.UpdateImage(ctx, d.User, opts, "cirros", api.ImageUpdate{Advice: &advice})
	_ = d.refuse(problem.Invalid, op, err)
	before := find[api.Image](d, opts.Project, "cirros")
	d.done(a.UpdateImage(ctx, d.User, opts, "cirros", api.ImageUpdate{Deprecated: &yes, Advice: &advice}))
	after := find[api.Image](d, opts.Project, "cirros")
	require.True(t, after.Spec.Deprecated)
	require.Equal(t, before.Status, after.Status, "its content is what it was")
	require.Equal(t, before.Spec.Source, after.Spec.Source)

	made := d.ask(a.CreateVM(ctx, d.User, opts, vmRequest("web1")))
	require.Equal(t, []string{"image cirros is deprecated: use debian"}, made.Warnings)
	volume := d.ask(a.CreateVolume(ctx, d.User, opts, api.VolumeCreate{Name: "tools", Image: "cirros", Pool: "vms"}))
	require.Equal(t, made.Warnings, volume.Warnings)
	d.settle(made, api.OpSucceeded)
	d.done(a.UpdateImage(ctx, d.User, opts, "cirros", api.ImageUpdate{Advice: &none}))
	require.Equal(t, []string{"image cirros is deprecated"}, d.ask(a.CreateVM(ctx, d.User, opts, vmRequest("web2"))).Warnings)
	d.done(a.UpdateImage(ctx, d.User, opts, "cirros", api.ImageUpdate{Advice: &advice}))
	d.done(a.UpdateImage(ctx, d.User, opts, "cirros", api.ImageUpdate{Deprecated: &no}))
	after = find[api.Image](d, opts.Project, "cirros")
	require.Equal(t, before.Spec, after.Spec, "the advice goes, too")
	require.Empty(t, d.ask(a.CreateVM(ctx, d.User, opts, vmRequest("web3"))).Warnings)
	line := "two\nlines"
	op, err = a.UpdateImage(ctx, d.User, opts, "cirros", api.ImageUpdate{Deprecated: &yes, Advice: &line})
	_ = d.refuse(problem.Invalid, op, err)
}

func TestWhoNeedsAnImageIsNamed(t *testing.T) {
	d := newDesk(t).cloud()
	d.done(d.Admission.CreateVM(ctx, d.User, opts, vmRequest("web1")))
	op, err := d.Admission.DeleteImage(ctx, d.User, opts, "cirros")
	p := d.refuse(problem.InUse, op, err)
	require.Contains(t, p.Why, "web1-root-")
	require.Contains(t, p.Why, "of vm web1")
}

func TestAnImageIsExportedWhileItIsUsed(t *testing.T) {
	d := newDesk(t).cloud()
	a := d.Admission
	op := d.ask(a.ExportImage(ctx, d.User, opts, "cirros", api.ImageExport{Format: api.FormatVMDK}))
	image := find[api.Image](d, opts.Project, "cirros")
	require.Equal(t, api.PhaseReady, image.Status.Phase)
	require.JSONEq(t, `{"image":"`+image.ID+`","format":"vmdk"}`, string(op.Plan.Input))
	d.done(a.CreateVM(ctx, d.User, opts, vmRequest("web1")))
	other, err := a.DeleteImage(ctx, d.User, opts, "cirros")
	_ = d.refuse(problem.InUse, other, err)
	d.settle(op, api.OpFailed)
	d.done(a.Retry(ctx, d.User, opts, op.ID))
	d.clean()
	for _, format := range []string{"", api.FormatQCOW2, "passwd"} {
		other, err := a.ExportImage(ctx, d.User, opts, "cirros", api.ImageExport{Format: format})
		_ = d.refuse(problem.Invalid, other, err)
	}
}

func TestAnImageComesFromOnePlace(t *testing.T) {
	for _, r := range []api.ImageCreate{
		{},
		{Path: "/a", URL: "https://host/a"},
		{Upload: api.NewID(), URL: "https://host/a"},
		{URL: "ftp://host/a"},
		{URL: "https:///a"},
		{URL: "https://user:secret@host/a"},
		{URL: "https://host/a#b"},
		{URL: "host/a"},
		{URL: "https://host/a", Format: "iso"},
	} {
		if r.Name = "x"; r.Format == "" {
			r.Format = api.FormatRaw
		}
		require.Equal(t, problem.Invalid, problem.KindOf(r.Validate()), "%+v", r)
	}
	for _, format := range api.ImageFormats() {
		require.NoError(t, (&api.ImageCreate{Name: "x", Format: format, URL: "https://host/a?b=c"}).Validate())
	}
}

func TestAnImageIsMadeOfWhatNobodyChanges(t *testing.T) {
	d := newDesk(t).cloud().shared()
	a := d.Admission
	root := d.vm("web1", "a1", nil).Status.Volumes[0]
	op, err := a.CreateImage(ctx, d.User, opts, api.ImageCreate{Name: "mine", Volume: root})
	_ = d.refuse(problem.Conflict, op, err)
	d.done(a.StopVM(ctx, d.User, opts, "web1", api.VMStop{}))
	op = d.ask(a.CreateImage(ctx, d.User, opts, api.ImageCreate{Name: "mine", Volume: root}))
	require.Equal(t, api.OpImageCapture, op.Kind)
	other, err := a.StartVM(ctx, d.User, opts, "web1")
	_ = d.refuse(problem.Locked, other, err)
	d.settle(op, api.OpFailed)
	missing[api.Image](d, opts.Project, "mine")
	d.clean()
	d.done(a.StartVM(ctx, d.User, opts, "web1"))
	for _, r := range []api.ImageCreate{
		{Volume: root, Snapshot: "s1"},
		{Volume: root, Path: "/a"},
		{Volume: root, Format: api.FormatRaw},
		{Volume: "No Name"},
		{Volume: root, SHA256: "0000000000000000000000000000000000000000000000000000000000000000"},
	} {
		r.Name = "x"
		require.Equal(t, problem.Invalid, problem.KindOf(r.Validate()), "%+v", r)
	}
}

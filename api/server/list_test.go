package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

const vmList = "/v1/projects/default/vms"

func (k *kit) list(query string) page[api.VM] {
	k.t.Helper()
	var p page[api.VM]
	k.call(k.admin, http.MethodGet, vmList+"?"+query, nil, 200, &p)
	return p
}

// Of 1,000 VMs, those that stay are listed exactly once, while others are deleted and made between the pages.
func TestPagingWhileThingsComeAndGo(t *testing.T) {
	k := newKit(t)
	all := vms(1000, nil)
	k.put(all...)
	stays := map[string]bool{}
	for i, vm := range all {
		if i%3 != 0 {
			stays[vm.GetMeta().ID] = true
		}
	}
	seen, pages, next := map[string]int{}, 0, 0
	for token := ""; ; {
		p := k.list("page_size=37&page_token=" + url.QueryEscape(token))
		pages++
		for _, vm := range p.Items {
			seen[vm.ID]++
		}
		if token = p.NextPageToken; token == "" {
			break
		}
		for range 15 { // behind the reader and before it
			for ; next < len(all) && next%3 != 0; next++ {
			}
			if next >= len(all) {
				break
			}
			vm, err := store.Get[api.VM](context.Background(), k.kv, system, "default", all[next].GetMeta().ID)
			require.NoError(t, err)
			d := store.NewDraft(system)
			d.Delete(vm)
			rev, err := d.Commit(context.Background(), k.kv)
			require.NoError(t, err)
			k.server.told(rev)
			next++
		}
		k.put(vms(1, func(_ int, vm *api.VM) { vm.Name = fmt.Sprintf("new-%d", pages) })...)
	}
	require.Greater(t, next, 300, "the deletions have not overlapped with the reading")
	for id := range stays {
		require.Equal(t, 1, seen[id], "vm %s", id)
	}
	for id, n := range seen {
		require.Equal(t, 1, n, "vm %s was listed twice", id)
	}
}

func TestPageSizes(t *testing.T) {
	k := newKit(t)
	k.put(vms(1010, nil)...)
	require.Len(t, k.list("").Items, 50)
	require.Len(t, k.list("page_size=1").Items, 1)
	p := k.list("page_size=5000")
	require.Len(t, p.Items, 1000)
	p = k.list("page_size=5000&page_token=" + p.NextPageToken)
	require.Len(t, p.Items, 10)
	require.Empty(t, p.NextPageToken)
	require.Equal(t, k.cache.Revision(), p.Revision)
}

func TestFilters(t *testing.T) {
	k := newKit(t)
	k.put(vms(100, func(i int, vm *api.VM) {
		vm.Labels["tier"] = "web"
		if i < 7 {
			vm.Status.Phase = api.PhaseError
		}
		if i == 0 {
			vm.Labels["note"] = "a=b, c"
		}
	})...)
	require.Len(t, k.list("label=n%3D3").Items, 10)
	require.Len(t, k.list("label=n%3D3&label=tier%3Dweb").Items, 10)
	require.Empty(t, k.list("label=n%3D3&label=tier%3Ddb").Items)
	require.Empty(t, k.list("label=n%3D3&label=n%3D4").Items)
	require.Len(t, k.list("label="+url.QueryEscape("note=a=b, c")).Items, 1)
	require.Len(t, k.list("abnormal=true").Items, 7)
	require.Len(t, k.list("abnormal=true&label=n%3D3").Items, 1)

	// A filtered list is paged as well, and its token does not fit another question.
	p := k.list("label=tier%3Dweb&page_size=60")
	require.Len(t, p.Items, 60)
	require.Len(t, k.list("label=tier%3Dweb&page_size=60&page_token="+p.NextPageToken).Items, 40)
	for _, other := range []string{"/v1/projects/default/vms?", "/v1/projects/default/vms?label=tier%3Ddb&", "/v1/projects/default/vms?abnormal=true&label=tier%3Dweb&", "/v1/pools?label=tier%3Dweb&"} {
		r := k.send(k.admin, http.MethodGet, other+"page_token="+p.NextPageToken, nil)
		require.Equal(t, problem.Invalid, r.problem(t).Code, other)
	}
}

// What was just accepted is in the next list: no answer is older than one that was given before.
func TestListsShowWhatWasWritten(t *testing.T) {
	k := newKit(t)
	for i := range 50 {
		name := fmt.Sprintf("net-%d", i)
		k.call(k.admin, http.MethodPost, "/v1/projects/default/vpcs", api.VPCCreate{Name: name, CIDR: "10.0.0.0/16"}, 202, nil)
		var p page[api.VPC]
		k.call(k.admin, http.MethodGet, "/v1/projects/default/vpcs?page_size=1000", nil, 200, &p)
		require.Len(t, p.Items, i+1)
		var v api.VPC
		r := k.call(k.admin, http.MethodGet, "/v1/projects/default/vpcs/"+name, nil, 200, &v)
		require.Equal(t, fmt.Sprintf("%q", fmt.Sprint(v.Revision)), r.Header.Get("ETag"))
	}
}

func TestOperationFilters(t *testing.T) {
	k := newKit(t)
	v := k.vpc("net")
	var op api.Operation
	k.call(k.admin, http.MethodDelete, "/v1/projects/default/vpcs/net", nil, 202, &op)
	k.call(k.admin, http.MethodPost, "/v1/noop", nil, 202, nil)
	for query, n := range map[string]int{
		"": 3, "state=succeeded": 1, "state=accepted": 2, "kind=vpc.delete": 1, "kind=nothing": 0, "target=net": 2, "target=" + v.ID: 2, "target=x": 0,
		"project=default": 2, "project=other": 0, "project=default&state=accepted": 1, "abnormal=true": 0,
	} {
		var p page[api.Operation]
		r := k.call(k.admin, http.MethodGet, "/v1/operations?"+query, nil, 200, &p)
		require.Len(t, p.Items, n, query)
		require.NotContains(t, string(r.body), `"plan"`)
		require.NotContains(t, string(r.body), `"requestHash"`)
		for _, op := range p.Items {
			require.Equal(t, "http://temporal.example/"+op.ID, op.URL)
		}
	}
	k.settle(op.ID, api.OpFailed)
	var p page[api.Operation]
	k.call(k.admin, http.MethodGet, "/v1/operations/"+op.ID, nil, 200, nil)
	k.call(k.admin, http.MethodGet, "/v1/operations?abnormal=true", nil, 200, &p)
	require.Len(t, p.Items, 1)
}

func FuzzPageToken(f *testing.F) {
	k := pageSigner("a key")
	f.Add("vms", k.token("vms", "6a1f"))
	f.Add("vms", "")
	f.Add("vms", "AAAA")
	f.Add("ports", k.token("vms", "6a1f"))
	f.Fuzz(func(t *testing.T, question, token string) {
		after, err := k.after(question, token)
		switch {
		case err != nil && !problem.Is(err, problem.Invalid):
			t.Fatalf("%q: %v", token, err)
		case err == nil && after == "" && token != "":
			t.Fatalf("%q began anew", token)
		case err == nil && token != k.token(question, after):
			t.Fatalf("%q was not made here", token)
		}
	})
}

func TestVolumesAreChosenByPoolAndVM(t *testing.T) {
	k := newKit(t)
	pool := func(name string) *api.Pool {
		return &api.Pool{Meta: api.Meta{ID: api.NewID(), Name: name}, Status: api.PoolStatus{Phase: api.PhaseReady}}
	}
	vm := func(name string) *api.VM {
		return &api.VM{Meta: api.Meta{ID: api.NewID(), Name: name, Project: "default"}, Status: api.VMStatus{Phase: api.PhaseRunning}}
	}
	fast, slow, db, web := pool("fast"), pool("slow"), vm("db"), vm("web")
	k.put(fast, slow, db, web)
	volume := func(name string, in *api.Pool, root *api.VM, attached ...*api.VM) {
		v := &api.Volume{Meta: api.Meta{ID: api.NewID(), Name: name, Project: "default"}, Spec: api.VolumeSpec{Pool: in.ID}}
		if root != nil {
			v.Spec.Root, v.Spec.VM = true, root.ID
		}
		for _, vm := range attached {
			v.Status.Attachments = append(v.Status.Attachments, api.Attachment{VM: vm.ID})
		}
		k.put(v)
	}
	volume("db-root", fast, db)
	volume("data", slow, nil, db)
	volume("both", slow, nil, db, web)
	volume("spare", slow, nil)
	const list = "/v1/projects/default/volumes?"
	for query, want := range map[string][]string{
		"":                   {"both", "data", "db-root", "spare"},
		"pool=slow":          {"both", "data", "spare"},
		"pool=" + fast.ID:    {"db-root"},
		"vm=db":              {"both", "data", "db-root"},
		"vm=" + web.ID:       {"both"},
		"vm=db&pool=slow":    {"both", "data"},
		"vm=web&pool=fast":   {},
		"vm=db&label=a%3Db":  {},
		"pool=slow&vm=" + "": {"both", "data", "spare"},
	} {
		var p page[api.Volume]
		k.call(k.admin, http.MethodGet, list+query, nil, 200, &p)
		names := []string{}
		for _, v := range p.Items {
			names = append(names, v.Name)
		}
		require.ElementsMatch(t, want, names, query)
	}
	// What does not exist is said, and a token fits only the question that it came with.
	k.call(k.admin, http.MethodGet, list+"pool=nosuch", nil, 404, nil)
	k.call(k.admin, http.MethodGet, list+"vm=nosuch", nil, 404, nil)
	k.call(k.admin, http.MethodGet, list+"vm=No_Name", nil, 422, nil)
	var p page[api.Volume]
	k.call(k.admin, http.MethodGet, list+"vm=db&page_size=1", nil, 200, &p)
	require.NotEmpty(t, p.NextPageToken)
	k.call(k.admin, http.MethodGet, list+"vm=db&page_size=1&page_token="+p.NextPageToken, nil, 200, nil)
	k.call(k.admin, http.MethodGet, list+"vm=web&page_size=1&page_token="+p.NextPageToken, nil, 422, nil)
}

package docs_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// variant is a pool that a driver is asked about: what it can do may depend on how it was added.
type variant struct {
	when string // "" for one that has nothing special
	pool steps.PoolOnNode
}

// drivers are the types of pools with their variants, as the table shows them.
func drivers() (names []string, all map[string][]storage.Capabilities, when map[string][]string) {
	dir := storage.NewDir(nil)
	mounts := storage.NewMounts(dir, api.MountDir, nil)
	all, when = map[string][]storage.Capabilities{}, map[string][]string{}
	add := func(of interface {
		Capabilities(steps.PoolOnNode) storage.Capabilities
	}, variants ...variant,
	) {
		for _, v := range variants {
			c := of.Capabilities(v.pool)
			if len(all[c.Type]) == 0 {
				names = append(names, c.Type)
			}
			all[c.Type], when[c.Type] = append(all[c.Type], c), append(when[c.Type], v.when)
		}
	}
	add(dir, variant{pool: steps.PoolOnNode{Type: api.PoolDir}}, variant{"with `--shared`", steps.PoolOnNode{Type: api.PoolDir, Shared: true}})
	add(mounts, variant{pool: steps.PoolOnNode{Type: api.PoolNFS}},
		variant{"with `vers=4.2`", steps.PoolOnNode{Type: api.PoolNFS, Source: api.PoolSource{Options: "vers=4.2"}}})
	add(mounts, variant{pool: steps.PoolOnNode{Type: api.PoolGluster}})
	all[api.PoolRBD], when[api.PoolRBD] = []storage.Capabilities{storage.RBDCapabilities()}, []string{""}
	return append(names, api.PoolRBD), all, when
}

// TestCapabilitiesTableIsWhatTheDriversSay compares docs/storage.md with the drivers. UPDATE_DOCS=1 writes the table anew.
func TestCapabilitiesTableIsWhatTheDriversSay(t *testing.T) {
	names, all, when := drivers()
	require.Equal(t, []string{api.PoolDir, api.PoolNFS, api.PoolGluster, api.PoolRBD}, names)
	var b strings.Builder
	b.WriteString("| |")
	for _, n := range names {
		fmt.Fprintf(&b, " `%s` |", n)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(names)) + "\n")
	for _, f := range reflect.VisibleFields(reflect.TypeFor[storage.Capabilities]()) {
		if f.Name == "Type" {
			continue
		}
		require.NotEmpty(t, f.Tag.Get("doc"), "field %s does not say what it is", f.Name)
		fmt.Fprintf(&b, "| %s |", f.Tag.Get("doc"))
		for _, n := range names {
			fmt.Fprintf(&b, " %s |", cell(t, f.Name, all[n], when[n]))
		}
		b.WriteString("\n")
	}
	generated(t, "storage.md", "<!-- table of capabilities: begin -->\n", "<!-- table of capabilities: end -->\n", b.String())
}

// cell says what a driver answers: always the same, or something else for a variant.
func cell(t *testing.T, field string, all []storage.Capabilities, when []string) string {
	t.Helper()
	var yes []string
	for i, c := range all {
		switch v := reflect.ValueOf(c).FieldByName(field).Interface().(type) {
		case string:
			require.Equal(t, v, reflect.ValueOf(all[0]).FieldByName(field).Interface(), "the table has one text for all variants")
			return v
		case bool:
			if v {
				yes = append(yes, when[i])
			}
		default:
			t.Fatalf("field %s is a %T, which the table does not know", field, v)
		}
	}
	switch len(yes) {
	case 0:
		return "no"
	case len(all):
		return "yes"
	}
	return strings.Join(yes, " or ")
}

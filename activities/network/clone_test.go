package network

import (
	"reflect"
	"testing"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/stretchr/testify/require"
)

// TestClones fills every field of every row: a clone must be equal and share nothing that can be changed.
func TestClones(t *testing.T) {
	for _, r := range tables() {
		v := reflect.ValueOf(r).Elem()
		for i := range v.NumField() {
			f := v.Field(i)
			switch f.Kind() {
			case reflect.String:
				f.SetString("s")
			case reflect.Int:
				f.SetInt(7)
			case reflect.Slice:
				f.Set(reflect.ValueOf([]string{"a", "b"}))
			case reflect.Map:
				f.Set(reflect.ValueOf(map[string]string{"k": "v"}))
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			default:
				t.Fatalf("%s has a field of kind %s, which this test does not know", r.table(), f.Kind())
			}
		}
		into := reflect.New(v.Type()).Interface()
		r.(model.CloneableModel).CloneModelInto(into)
		for _, c := range []any{model.Clone(r), into} {
			require.Equal(t, r, c)
			for i := range v.NumField() {
				switch a, b := v.Field(i), reflect.ValueOf(c).Elem().Field(i); a.Kind() {
				case reflect.Slice, reflect.Map, reflect.Pointer:
					require.NotEqual(t, a.Pointer(), b.Pointer(), "%s shares %s", r.table(), v.Type().Field(i).Name)
				default:
				}
			}
		}
	}
}

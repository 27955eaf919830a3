package problem

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWrapKeepsTheKindOfAnInnerProblem(t *testing.T) {
	inner := New(NoCapacity, "no node has 4 vCPU").Try("add a node")
	err := Wrap(fmt.Errorf("placing: %w", inner), Internal, "cannot create vm %q", "web")
	p := From(err)
	require.Equal(t, NoCapacity, p.Kind)
	require.Equal(t, "add a node", p.Fix)
	require.Equal(t, `cannot create vm "web": no node has 4 vCPU (add a node)`, p.Error())
	require.True(t, errors.Is(err, inner))
}

func TestFromPlainErrorIsInternal(t *testing.T) {
	require.Equal(t, Internal, From(errors.New("boom")).Kind)
	require.Nil(t, From(nil))
	require.NoError(t, Wrap(nil, Invalid, "x"))
}

func TestEveryKindHasTraits(t *testing.T) {
	for _, k := range Kinds() {
		tr := TraitsOf(k)
		require.GreaterOrEqual(t, tr.Status, 400, k)
		require.NotZero(t, tr.Exit, k)
		require.NotEmpty(t, tr.Title, k)
	}
	require.Equal(t, 500, TraitsOf("nonsense").Status)
}

func TestValidationListsAllFields(t *testing.T) {
	var v Validation
	require.NoError(t, v.Err("vm"))
	v.Check(false, "spec.vcpus", 0, "must be at least 1")
	v.Check(true, "spec.memory", 1, "never")
	v.Add("name", "A", "must be lower case")
	p := From(v.Err("vm"))
	require.Len(t, p.Fields, 2)
	require.Equal(t, Invalid, p.Kind)
}

package storage_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// conformFlat is what every driver of pools of files does with volumes that are to need no image any more.
func conformFlat(t *testing.T, s *stand) {
	v, other := s.volume(), s.volume()
	v.Image, other.Image, v.Size = s.cached(), s.cached(), 3*api.MiB // larger than the image
	s.make(t, v)
	s.make(t, other)
	s.write(t, v, 5, 'a')
	alone := func(v steps.VolumePlan, want bool) {
		t.Helper()
		yes, err := s.StandsAlone(t.Context(), v)
		require.NoError(t, err)
		require.Equal(t, want, yes)
	}
	alone(v, false)
	top := s.snap(t, v)
	is(t, problem.Conflict, s.FlattenVolume(t.Context(), top, nil))
	require.NoError(t, s.drop(t, v, top))
	for range 2 {
		require.NoError(t, s.FlattenVolume(t.Context(), v, func(api.Progress) {}))
		alone(v, true)
	}
	s.shows(t, v, shown{0: imageByte, 5: 'a'})
	alone(other, false)
	is(t, problem.InUse, s.EvictImage(t.Context(), *s.cached()))
	require.NoError(t, s.FlattenVolume(t.Context(), other, nil))
	require.NoError(t, s.EvictImage(t.Context(), *s.cached()))
	s.shows(t, v, shown{0: imageByte, 5: 'a'})
	s.shows(t, other, shown{0: imageByte})
	s.write(t, v, 0, 'b')
	top = s.snap(t, v)
	s.shows(t, top, shown{0: 'b', 5: 'a'})
	empty, gone := s.volume(), s.volume()
	s.make(t, empty)
	alone(empty, true)
	require.NoError(t, s.FlattenVolume(t.Context(), empty, nil))
	is(t, problem.NotFound, s.FlattenVolume(t.Context(), gone, nil))
	_, err := s.StandsAlone(t.Context(), gone)
	is(t, problem.NotFound, err)
	gone.Volume = "../../etc/passwd"
	is(t, problem.Invalid, s.FlattenVolume(t.Context(), gone, nil))
}

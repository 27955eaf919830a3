package libvirt

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/api/problem"
)

// TestAPoolThatIsFullIsNoBug: a resize that finds no room is refused for good. As an internal error it would be tried again for ever, and
// its VM be held until somebody makes room.
func TestAPoolThatIsFullIsNoBug(t *testing.T) {
	full := libvirt.Error{
		Code:    libvirt.ERR_INTERNAL_ERROR,
		Message: "internal error: unable to execute QEMU command 'block_resize': Failed to grow the L1 table: No space left on device",
	}
	err := noRoom(full, "v")
	require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
	require.True(t, problem.Is(explain(err, "resize the disk", "here"), problem.NoCapacity))
	for _, other := range []error{nil, errors.New("No space left on device"), libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Message: "something else"}} {
		require.Equal(t, other, noRoom(other, "v"))
	}
}

// TestAnAttemptThatWasCutOffIsTold: whoever asked for the move is told that asking again is all there is to do.
func TestAnAttemptThatWasCutOffIsTold(t *testing.T) {
	err := cutOff(libvirt.Error{Code: libvirt.ERR_OPERATION_INVALID, Message: "Requested operation is not valid: domain 'ns-x' is already active"})
	require.True(t, problem.Is(err, problem.Conflict), "%v", err)
	require.NotEmpty(t, problem.From(err).Fix)
	other := libvirt.Error{Code: libvirt.ERR_OPERATION_INVALID, Message: "Requested operation is not valid: domain is not running"}
	require.Equal(t, error(other), cutOff(other))
	require.NoError(t, cutOff(nil))
}

// SPDX-License-Identifier: Apache-2.0

package loop

import "errors"

func newUring(l *Loop) (engine, error) { return nil, errors.ErrUnsupported }

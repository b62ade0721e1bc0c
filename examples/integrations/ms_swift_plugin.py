"""ms-swift: ``swift sft ... --external_plugins ms_swift_plugin.py --optimizer sage_ext``."""

import sage_ext.integrations.ms_swift  # noqa: F401
